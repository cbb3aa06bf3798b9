"""Functions that call each other, dicts, queues, batches and secrets, against a real server."""

import asyncio
import base64
import queue
import threading
import time
from collections.abc import Iterator

import calling_app as ca
import httpx
import pytest
from server import Server, until

import isobox
from isobox import Dict, Queue

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def running(server: Server) -> Iterator[None]:
    keys = {"url": server.url, "api_key": server.key}
    made = [
        isobox.Secret.put("calling-secret", "first-secret", **keys),
        isobox.Secret.put("calling-other", "other-secret", **keys),
    ]
    with ca.app.run(url=server.url, api_key=server.key):
        yield
    for each in made:
        each.delete(**keys)


@pytest.fixture
def keys(server: Server) -> dict[str, str]:
    return {"url": server.url, "api_key": server.key}


# ---- calls


def test_functions_call_each_other(running: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert ca.through.remote(20) == 41
    assert "doubling 20" in capfd.readouterr().out
    assert ca.many.remote(5) == [2, 4, 6, 8, 10, 200]
    assert ca.in_a_thread.remote(4) == 8
    assert ca.gathered.remote("abc") == ["a", "b", "c"]
    assert ca.by_objects.remote(2) == [6, 20]
    assert ca.by_trust.remote(2) == "int"
    size, first = ca.heavy.remote(1 << 20)
    assert (size, len(first)) == (1 << 20, 1)


def test_exceptions_come_through_two_containers(running: None) -> None:
    with pytest.raises(ZeroDivisionError, match="nothing") as raised:
        ca.through.remote(0)
    assert "in through" in str(raised.value.__cause__)
    with pytest.raises(isobox.RemoteError, match="may not call other functions"):
        ca.alone.remote(1)


def test_recursion_ends_in_one_container_each(running: None, http: httpx.Client) -> None:
    assert ca.factorial.remote(6) == 720
    assert ca.even.remote(6) is True
    assert list(ca.factorial.map([1, 2, 3, 4])) == [1, 2, 6, 24]
    found = http.get("/v1/sandboxes", params={"label": f"isobox.function:{ca.factorial.id}"}).json()["sandboxes"]
    assert len(found) == 1
    with pytest.raises(isobox.RemoteError, match="32 deep"):
        ca.factorial.remote(40)


def test_what_cannot_be_made_is_told_inside(keys: dict[str, str]) -> None:
    app = isobox.App("unmakeable")

    @app.function(image=isobox.Image.base("python").run("echo no such step >&2; exit 3"), max_containers=1)
    def broken() -> None: ...

    @app.function(max_containers=1)
    def calls() -> None:
        broken.remote()

    with app.run(**keys):
        for _ in range(2):
            with pytest.raises(isobox.RemoteError, match=r"broken cannot be made: ImageFailed: .* step 1 failed"):
                calls.remote()


def test_a_spawned_call_calls_on_when_its_client_has_gone(keys: dict[str, str]) -> None:
    app = isobox.App("leaving")

    @app.function(max_containers=1)
    def inner(x: int) -> int:
        return x + 1

    @app.function(max_containers=1)
    def outer(x: int, seconds: float) -> int:
        import time

        time.sleep(seconds)
        return int(inner.remote(x))

    with app.run(**keys):
        assert outer.remote(1, 0.0) == 2
        call = outer.spawn(5, 1.0)
    assert isobox.FunctionCall.from_id(call.id, **keys).get(timeout=30) == 6


def test_a_call_inside_survives_the_server(own_server: Server) -> None:
    own_server.start()
    app = isobox.App("outliving")  # of a script, so to say: its functions are pickled

    @app.function(max_containers=1)
    def slow(seconds: float) -> str:
        import time

        time.sleep(seconds)
        return "slept"

    @app.function(max_containers=1)
    def waits(seconds: float) -> str:
        return str(slow.remote(seconds))

    with app.run(url=own_server.url, api_key=own_server.key):
        assert waits.remote(0.01) == "slept"
        call = waits.spawn(3)
        with own_server.client() as http:
            until(lambda: http.get(f"/v1/functions/{slow.id}").json()["running"] == 1)
        own_server.kill()
        own_server.start()
        assert call.get(timeout=60) == "slept"


def test_a_call_that_a_killed_client_left_open_is_closed_and_forgotten(own_server: Server) -> None:
    own_server.environment["ISOBOX_RETAIN_S"] = "1"
    own_server.start()
    app = isobox.App("left")

    @app.function(max_containers=1)
    def one() -> int:
        return 1

    with app.run(url=own_server.url, api_key=own_server.key), own_server.client() as http:
        assert one.remote() == 1
        nothing = base64.b64encode(b"j[[], {}]").decode()
        body = {"inputs": [{"data": nothing}], "more": True}
        path = f"/v1/calls/{http.post(f'/v1/functions/{one.id}/calls', json=body).json()['id']}"
        until(lambda: http.get(path).json()["ended"] == 1)
        assert http.get(path).json()["complete"] is False
        time.sleep(6)  # to ask is to keep it
        assert http.get(path).json()["code"] == "call_not_found"


def test_a_client_that_is_gone_keeps_nothing_ready(running: None, http: httpx.Client) -> None:
    run = "run" + "a" * 26
    body = {"app": "calling", "functions": []}
    assert http.put(f"/v1/runs/{run}", json=body).json() == {"wanted": [], "ended": False}
    assert http.put(f"/v1/runs/{run}", json=body | {"app": "other"}).json()["code"] == "run_id_taken"
    assert http.delete(f"/v1/runs/{run}").status_code == 204
    assert http.put(f"/v1/runs/{run}", json=body).json()["ended"] is True
    assert http.delete("/v1/runs/run" + "b" * 26).json()["code"] == "run_not_found"


def test_what_a_container_may_not_ask(running: None, http: httpx.Client) -> None:
    other = isobox.App("calling-other")

    @other.function(max_containers=1)
    def theirs() -> int:
        return 1

    with other.run(url=str(http.base_url), api_key=http.headers["authorization"].removeprefix("Bearer ")):
        call = theirs.spawn()
        call.get()
        for path in ("/v1/sandboxes", "/v1/secrets", f"/v1/calls/{call.id}", "/v1/dicts/../secrets", "/v1/uploads/x"):
            assert ca.asks_for.remote(path) == 404
        assert ca.asks_for.remote(f"/v1/calls/{call.id}?after=nan") in (404, 422)
        assert ca.asks_for.remote("/v1/dicts/none/items?after=-1") == 422


def test_a_container_that_floods_the_server_with_questions_ends(running: None) -> None:
    with pytest.raises(isobox.ContainerFailed, match="broke the protocol: more questions"):
        ca.floods.remote()


# ---- batches, secrets


def test_batches(running: None) -> None:
    calls = [ca.together.spawn(n, plus=10) for n in range(4)]
    found = [call.get() for call in calls]
    assert [each[0] for each in found] == [10, 11, 12, 13]
    assert max(each[1] for each in found) > 1
    assert ca.together.remote(1, plus=1) == (2, 1)
    with pytest.raises(TypeError, match="a result for each of its"):
        ca.wrongly.remote(1)
    batching = ca.Batching()
    assert max(batching.sizes.map(range(8))) > 1
    assert batching.single.remote(5) == 5
    with pytest.raises(ValueError, match="at least"):
        isobox.batched(max_batch_size=0, wait_ms=1)


def test_secrets_are_in_the_environment_and_nowhere_else(
    running: None, http: httpx.Client, keys: dict[str, str]
) -> None:
    assert ca.secret.remote() == ("first-secret", "other-secret")
    found = http.get("/v1/sandboxes", params={"label": f"isobox.function:{ca.secret.id}"}).json()["sandboxes"]
    assert "first-secret" not in http.get(f"/v1/sandboxes/{found[0]['id']}").text
    assert "first-secret" not in http.get(f"/v1/sandboxes/{found[0]['id']}/execs").text
    short = isobox.App("ephemeral-secret")
    with isobox.Secret.ephemeral("short-lived", env="SHORT", **keys) as one, short.run(**keys):

        @short.function(secrets=[one], max_containers=1)
        def told() -> str:
            import os

            return os.environ["SHORT"]

        assert told.remote() == "short-lived"
    assert one.name not in http.get("/v1/secrets").text
    app = isobox.App("unknown-secret")

    @app.function(secrets=["never-stored"])
    def nothing() -> None: ...

    with app.run(**keys), pytest.raises(isobox.InvalidRequest, match="no secret never-stored"):
        nothing.remote()


def test_metrics_tell_how_functions_do(running: None, operator: httpx.Client) -> None:
    ca.double.remote(1)
    found = operator.get("/metrics").text
    labels = f'app="calling",function="double",id="{ca.double.id}"'
    assert f'isobox_function_ended{{{labels},state="done"}}' in found
    assert f'isobox_function_containers{{{labels},state="ready"}}' in found


def test_a_progress_bar(running: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(ca.echo.map([b"a", b"b"], progress=True)) == [b"a", b"b"]
    assert "2/2" in capfd.readouterr().err


def test_containers_begin_from_an_interpreter_that_has_begun(http: httpx.Client, keys: dict[str, str]) -> None:
    app = isobox.App("begun")

    def function(**env: str) -> "isobox.Function[[], list[str]]":
        @app.function(max_containers=1, env=env)
        def variables() -> list[str]:
            import os

            return [os.environ.get("MINE", ""), os.environ["ISOBOX_FUNCTION"], os.environ["HOME"]]

        return variables

    def began_from(made: "isobox.Function[[], list[str]]") -> str | None:
        found = http.get("/v1/sandboxes", params={"label": f"isobox.function:{made.id}"}).json()["sandboxes"]
        return found[0]["snapshot"]  # type: ignore[no-any-return]

    def kept() -> list[str]:
        found = http.get("/v1/snapshots").json()["snapshots"]
        return [each["id"] for each in found if each["name"] == "python, for functions"]

    name = "begun.test_containers_begin_from_an_interpreter_that_has_begun.function.variables"
    with app.run(**keys):
        function(MINE="0").remote()
        until(lambda: kept())
        second, third = function(MINE="2"), function(MINE="3", PYTHONUNBUFFERED="1")
        assert second.remote() == ["2", name, "/home/user"]
        assert began_from(second) in kept()
        assert third.remote() == ["3", name, "/home/user"]
        assert began_from(third) is None, "Python reads that when it starts"
        for each in kept():
            http.delete(f"/v1/snapshots/{each}")
        fourth = function(MINE="4")
        assert fourth.remote()[0] == "4"
        assert began_from(fourth) is None


# ---- dicts and queues


def test_a_dict(keys: dict[str, str]) -> None:
    with Dict.ephemeral(**keys) as found:
        found["one"] = 1
        found[2, "b"] = [1, {"x": b"y"}]
        assert found["one"] == 1
        assert found[2, "b"] == [1, {"x": b"y"}]
        assert "one" in found
        assert "two" not in found
        assert found.get("two", 7) == 7
        assert found.put("one", 5, if_absent=True) is False
        assert found.put("three", 3, if_absent=True) is True
        found.update({f"n{n}": n for n in range(700)}, four=4)
        assert len(found) == 704
        assert list(found)[:3] == ["one", (2, "b"), "three"]
        assert dict(found.items())["n699"] == 699
        assert found.pop("one") == 1
        with pytest.raises(KeyError):
            found.pop("one")
        with pytest.raises(KeyError):
            found["one"]
        del found["three"]
        assert asyncio.run(found.get.aio("four")) == 4
        found.clear()
        assert len(found) == 0
        large = {n: bytes([n]) * (1 << 19) for n in range(20)}
        found.update(large)
        assert dict(found.items()) == large
        with pytest.raises(isobox.NotSerializable, match="no key"):
            found[[1]] = 1
        with pytest.raises(isobox.NotSerializable, match="trust"):
            found["x"] = object()
        with pytest.raises(isobox.InvalidRequest):
            found["x"] = b"x" * (2 << 20)
    with pytest.raises(isobox.FunctionError, match="create_if_missing"):
        Dict.from_name(found.name, **keys)["x"]


def test_a_queue(keys: dict[str, str]) -> None:
    with Queue.ephemeral(**keys) as found:
        found.put(1)
        found.put_many([2, 3, 4])
        found.put("other", partition="p")
        assert (len(found), found.len(), found.len(partition="p"), found.len(total=True)) == (5, 4, 1, 5)
        assert found.partitions() == ["", "p"]
        assert list(found.iterate()) == [1, 2, 3, 4]
        assert found.get() == 1
        assert found.get_many(10) == [2, 3, 4]
        assert found.get(partition="p") == "other"
        with pytest.raises(queue.Empty):
            found.get(block=False)
        with pytest.raises(queue.Empty):
            found.get(timeout=0.2)
        found.put("soon gone", ttl=0.2)
        until(lambda: found.len() == 0)
        found.put_many(range(5000))
        with pytest.raises(queue.Full):
            found.put(1, timeout=0.2)
        found.clear()
        found.put_many(bytes(1 << 19) for _ in range(12))
        assert len(list(found.iterate())) == 12
        taken = found.get_many(12)
        while len(taken) < 12:
            assert len(taken[-1]) == 1 << 19
            taken += found.get_many(12)
        assert found.len() == 0
        threading.Timer(0.3, lambda: found.put("late")).start()
        assert found.get(timeout=20) == "late"
        assert asyncio.run(found.put.aio("x")) is None
    assert repr(found).startswith("<Queue ephemeral-")


def test_what_is_asked_twice_is_done_once(http: httpx.Client) -> None:
    assert http.put("/v1/queues/twice", json={}).json()["items"] == 0
    assert http.put("/v1/queues/twice", json={}).status_code == 200
    put = {"values": ["YQ=="], "token": "a" * 16}
    for _ in range(2):
        assert http.post("/v1/queues/twice/put", json=put).status_code == 204
    assert http.get("/v1/queues/twice/lengths").json() == {"partitions": {"": 1}}
    get = {"token": "b" * 16}
    assert [http.post("/v1/queues/twice/get", json=get).json()["values"] for _ in range(2)] == [["YQ=="]] * 2
    assert http.post("/v1/queues/twice/get", json={}).json()["values"] == []
    assert [each["name"] for each in http.get("/v1/queues").json()["objects"]] == ["twice"]
    assert http.delete("/v1/queues/twice").status_code == 204
    assert http.post("/v1/queues/twice/get", json={}).json()["code"] == "queue_not_found"
    assert http.post("/v1/dicts/none/get", json={"keys": []}).json()["code"] == "dict_not_found"
    http.put("/v1/dicts/wide", json={})
    for key in ("YQ==", "Yg==", "Yw=="):
        item = {"key": key, "value": base64.b64encode(bytes(1 << 20)).decode()}
        assert http.post("/v1/dicts/wide/put", json={"items": [item]}).status_code == 200
    many = http.post("/v1/dicts/wide/get", json={"keys": ["YQ==", "Yg==", "Yw=="] * 3})
    assert (many.status_code, many.json()["code"]) == (413, "answer_too_large")
    http.delete("/v1/dicts/wide")
    assert http.put("/v1/dicts/bad%20name", json={}).json()["code"] == "invalid_request"


def test_what_waits_is_kept_when_the_server_dies(own_server: Server) -> None:
    own_server.start()
    keys = {"url": own_server.url, "api_key": own_server.key}
    with Queue.from_name("kept", create_if_missing=True, **keys) as kept:
        kept.put_many(range(10))
        own_server.kill()
        own_server.start()
        assert kept.get_many(20) == list(range(10))
    Queue.delete("kept", **keys)


def test_a_killed_server_loses_and_repeats_no_job(own_server: Server) -> None:
    own_server.start()
    keys = {"url": own_server.url, "api_key": own_server.key}
    app = isobox.App("jobs")
    take = app.function(max_containers=2)(ca.once.isobox_local)
    with app.run(**keys), Queue.ephemeral(**keys) as jobs, Dict.ephemeral(**keys) as done:
        workers = [take.spawn(jobs, done) for _ in range(2)]
        jobs.put_many([*range(200), None, None])
        for least in (20, 80):
            until(lambda: len(done) > least)  # noqa: B023
            own_server.kill()
            own_server.start()
        assert sum(each.get(timeout=90) for each in workers) == 200
        assert len(done) == 200


def test_containers_share_queues_and_dicts(running: None, keys: dict[str, str]) -> None:
    with Queue.ephemeral(**keys) as jobs, Dict.ephemeral(**keys) as done:
        workers = [ca.work.spawn(jobs, done) for _ in range(2)]
        jobs.put_many([*range(20), None, None])
        assert sum(isobox.gather(*workers)) == 20
        assert dict(done.items()) == {n: n * n for n in range(20)}
        name = done.name
        assert [ca.counts_up.remote(name), ca.counts_up.remote(name)] == [1, 2]
        with pytest.raises(isobox.RemoteError, match="nor use dicts"):
            ca.counts_nothing.remote(name)
