"""The function SDK against a real server."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import function_app as fa
import httpx
import pytest
from server import Server, until

import isobox
from isobox import FunctionCall, RemoteError

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def printed() -> list[tuple[int, int, str]]:
    return []


@pytest.fixture(scope="module")
def running(server: Server, printed: list[tuple[int, int, str]]) -> Iterator[None]:
    with fa.app.run(
        url=server.url, api_key=server.key, on_print=lambda index, stream, text: printed.append((index, stream, text))
    ):
        yield


@pytest.fixture(autouse=True)
def _runs(request: pytest.FixtureRequest) -> None:
    if "own_server" not in request.fixturenames:
        request.getfixturevalue("running")


def test_one_call_here_and_there() -> None:
    assert fa.square.remote(7) == fa.square(7) == fa.square.local(7) == 49
    assert fa.power.remote(2, n=10) == 1024
    assert fa.calls_another.remote(3) == 18
    assert repr(fa.square) == "<Function tests.square>"


def test_many_in_their_order_or_as_they_come() -> None:
    assert list(fa.square.map(range(50))) == [n * n for n in range(50)]
    assert sorted(fa.square.map(range(20), order_outputs=False)) == [n * n for n in range(20)]
    assert list(fa.power.starmap([(2,), (3,)])) == [4, 9]
    assert list(fa.square.map([])) == []
    fa.square.for_each(range(3))
    with pytest.raises(KeyError):
        list(fa.fails.map(["a", "own"]))
    found = list(fa.fails.map(["a", "own"], return_exceptions=True))
    assert [type(each) for each in found] == [KeyError, fa.Own]


def test_inputs_that_fail_end_a_map() -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with pytest.raises((ZeroDivisionError, isobox.CallCancelled)):
        list(fa.square.map(inputs()))


def test_spawned_calls_are_found_again(server: Server) -> None:
    call = fa.slowly.spawn(3)
    again = FunctionCall.from_id(call.id, url=server.url, api_key=server.key)
    assert again.get(timeout=20)[0] == 3
    assert call.poll()
    assert call.get() == again.get()
    assert isobox.gather(fa.square.spawn(2), fa.square.spawn(3)) == [4, 9]
    late = fa.sleeps.spawn(0.4)
    with pytest.raises(TimeoutError, match="it goes on"):
        late.get(timeout=0.01)
    assert late.get(timeout=20) == 0.4
    with pytest.raises(isobox.NotFound):
        FunctionCall.from_id("cal" + "a" * 26, url=server.url, api_key=server.key).get()


def test_for_asyncio() -> None:
    async def work() -> list[Any]:
        one, call = await asyncio.gather(fa.square.remote.aio(5), fa.square.spawn.aio(6))
        many = [each async for each in fa.square.map_async(range(4))]
        return [one, await call.get_async(), many]

    assert asyncio.run(work()) == [25, 36, [0, 1, 4, 9]]


def test_prints_come_to_the_caller(printed: list[tuple[int, int, str]]) -> None:
    printed.clear()
    assert fa.talk.remote("hello") == ("HELLO", b"hello")
    assert (0, 1, "said hello\n") in printed
    assert (0, 2, "child hello\n") in printed


def test_exceptions_come_back_as_themselves() -> None:
    with pytest.raises(fa.Own) as own:
        fa.fails.remote("own")
    assert own.value.args == ("mine", 1)
    assert "function_app.py" in str(own.value.__cause__)
    with pytest.raises(RemoteError, match="Hidden: nobody knows it") as hidden:
        fa.fails.remote("hidden")
    assert "raise type" in hidden.value.remote_traceback
    with pytest.raises(RemoteError, match="SystemExit: 3"):
        fa.fails.remote("exit")
    with pytest.raises(TypeError, match='trust="pickle"'):
        fa.odd.remote()
    assert fa.trusted.remote({1, 2}) == {"kept": {1, 2}, "type": set}


def test_what_cannot_be_sent() -> None:
    with pytest.raises(isobox.NotSerializable, match="cannot be sent"):
        fa.square.remote(threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(isobox.ContainerFailed, match="no python3"):
        fa.nowhere.remote(1)
    with pytest.raises(isobox.FunctionError, match="use remote_gen"):
        fa.count.remote(1)


def test_generators(server: Server) -> None:
    assert list(fa.count.remote_gen(5)) == list(range(5))
    assert list(fa.count_later.remote_gen(3)) == [0, 1, 2]
    abandoned = fa.endless.remote_gen()
    assert [next(abandoned) for _ in range(3)] == [0, 1, 2]
    abandoned.close()
    with server.client() as http:
        function = http.get(f"/v1/functions/{fa.endless.id}")
        assert function.json()["running"] == 0
    again = fa.endless.remote_gen()
    assert next(again) == 0
    again.close()


def test_it_is_tried_again() -> None:
    assert fa.at_the_third.remote("/tmp/tries") == 3
    with pytest.raises(isobox.FunctionTimeout, match=r"longer than timeout_s=0\.5"):
        fa.sleeps.remote(30)
    assert fa.sleeps.remote(0.01) == 0.01


def test_inputs_share_a_container() -> None:
    fa.together.remote(0.0)
    began = time.monotonic()
    assert len(list(fa.together.map([0.5] * 8))) == 8
    assert time.monotonic() - began < 3
    assert list(fa.marked.map([0.1] * 4)) == [0.1] * 4


def test_a_crash_costs_nobody_else_anything() -> None:
    found = list(fa.crashes.map([1, 2, -1, 3, 4], return_exceptions=True))
    assert [each for each in found if isinstance(each, int)] == [1, 2, 3, 4]
    assert isinstance(found[2], isobox.ContainerFailed)
    assert "4 containers ended under it" in str(found[2])


def test_out_of_memory_costs_nobody_else_anything() -> None:
    found = list(fa.hungry.map([1, 2, 1000, 3], return_exceptions=True))
    assert [each for each in found if isinstance(each, int)] == [1 << 20, 2 << 20, 3 << 20]
    assert isinstance(found[2], isobox.ContainerFailed | RemoteError)
    assert "memory" in str(found[2]).lower()


def test_a_container_that_is_killed_is_replaced(server: Server) -> None:
    with server.client() as http:

        def containers() -> list[str]:
            found = http.get("/v1/sandboxes", params={"state": "running", "label": f"isobox.function:{fa.slowly.id}"})
            return [each["id"] for each in found.json()["sandboxes"]]

        results = fa.slowly.map(range(30))
        first = [next(results)[0] for _ in range(3)]
        http.delete(f"/v1/sandboxes/{containers()[0]}")
        assert first + [each[0] for each in results] == list(range(30))


def test_large_values_both_ways() -> None:
    assert fa.size.remote(os.urandom(3 << 20)) == 3 << 20
    data = fa.large.remote(100 << 20)
    assert len(data) == 100 << 20


def test_what_is_empty_in_a_container_takes_no_disk_of_the_server(server: Server) -> None:
    before = disk_of(server.state / "values")
    call = fa.forged.spawn("yield", 130 << 20, 6)
    with server.client() as http:
        until(lambda: http.get(f"/v1/calls/{call.id}").json()["complete"])
        results = http.get(f"/v1/calls/{call.id}").json()["results"]
    assert [each["file"] for each in results if each["kind"] == "yield"] == [130 << 20] * 6
    assert disk_of(server.state / "values") - before < 8 << 20


def disk_of(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_no_result_is_larger_than_the_disk_of_its_container() -> None:
    with pytest.raises(isobox.ContainerFailed, match="its container has a disk of"):
        fa.forged.remote("done", 3 << 30, 1)
    assert fa.square.remote(3) == 9


def test_objects_live_in_containers() -> None:
    model = fa.Model(name="abc")
    assert fa.Model(name="abc") is model
    assert model.scaled.remote(4, plus=1) == 9
    assert fa.Model(name="abc", scale=10).scaled.remote(4) == 40
    assert list(model.scaled.map(range(5))) == [0, 2, 4, 6, 8]
    assert list(model.letters.remote_gen()) == ["a", "b", "c"]
    found = {each.get() for each in [model.facts.spawn() for _ in range(6)]}
    assert len({loaded for loaded, _, _ in found}) == 1, "the second container began from the first one's memory"
    assert len(found) == len({began for _, began, _ in found}) == len({drawn for _, _, drawn in found}) == 2
    assert len({part for _, _, drawn in found for part in drawn.split()}) == 4, "neither random's nor OpenSSL's"
    with pytest.raises(RemoteError, match="FileNotFoundError: weights"):
        fa.Broken().run.remote()
    with pytest.raises(TypeError, match="needs name"):
        fa.Model()
    with pytest.raises(TypeError, match="has no parameter size"):
        fa.Model(name="x", size=3)
    with pytest.raises(AttributeError, match="it has facts, scaled, letters"):
        model.hidden  # noqa: B018
    with pytest.raises(isobox.NotSerializable):
        fa.Model(name=object())
    with pytest.raises(isobox.FunctionError, match="nothing to call"):
        fa.app.cls()(type("Empty", (), {}))


def test_an_object_is_told_of_its_end(server: Server) -> None:
    with isobox.Volume.ephemeral(url=server.url, api_key=server.key) as volume:
        _ends_with_a_word(server, volume)


def _ends_with_a_word(server: Server, volume: isobox.Volume) -> None:
    app = isobox.App("ending")

    @app.cls(volumes={"/kept": volume}, scaledown_window=1, max_containers=1)
    class Ending:
        @isobox.method()
        def work(self) -> int:
            print("working")
            return 1

        @isobox.exit()
        def close(self) -> None:
            import time

            with open("/kept/closed", "w") as file:
                file.write("closed")
            time.sleep(1.5)

    with app.run(url=server.url, api_key=server.key), server.client() as http:
        ending = Ending()
        assert ending.work.remote() == 1
        found = http.get("/v1/sandboxes", params={"label": f"isobox.function:{ending.work.id}"}).json()["sandboxes"]
        path = f"/v1/sandboxes/{found[0]['id']}/files"
        until(lambda: http.get(path, params={"path": "/kept/closed"}).text == "closed")
        until(lambda: http.get(f"/v1/sandboxes/{found[0]['id']}").json()["state"] == "terminated")


def test_a_cancelled_call_stops() -> None:
    call = fa.sleeps.spawn(0.4)
    call.cancel()
    with pytest.raises(isobox.CallCancelled):
        call.get(timeout=10)
    call.cancel()
    assert fa.sleeps.remote(0.01) == 0.01


def test_containers_come_and_go(server: Server) -> None:
    assert sorted(fa.soon_gone.map(range(9))) == list(range(9))
    with server.client() as http:
        until(lambda: http.get(f"/v1/functions/{fa.soon_gone.id}").json()["containers"] == 0)
        assert any(each["name"] == "soon_gone" for each in http.get("/v1/functions").json()["functions"])
        used = {each["function"]: each for each in http.get("/v1/usage").json()["functions"]}
        assert used[fa.soon_gone.id]["name"] == "tests.soon_gone"
        assert used[fa.soon_gone.id]["cpu_s"] > 0


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(text))
    return path


def test_a_script_is_sent_by_value_and_may_die(server: Server, tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        import os, signal, isobox

        app = isobox.App("script")
        offset = 100

        @app.function(max_containers=1)
        def shifted(x):
            import time
            time.sleep(0.3)
            return x + offset

        with app.run():
            print(shifted.remote(1), flush=True)
            print(shifted.spawn(2).id, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    environment = os.environ | {"ISOBOX_URL": server.url, "ISOBOX_API_KEY": server.key}
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    value, call = done.stdout.split()
    assert value == "101"
    assert FunctionCall.from_id(call, url=server.url, api_key=server.key).get(timeout=20) == 102


def test_what_is_kept_ready_goes_with_its_app(server: Server) -> None:
    kept = isobox.App("kept")

    @kept.function(min_containers=1, scaledown_window=1)
    def ready() -> int:
        return 1

    with server.client() as http:
        with kept.run(url=server.url, api_key=server.key):
            path = f"/v1/functions/{ready.id}"
            until(lambda: http.get(path).json()["containers"] == 1)
            with pytest.raises(isobox.FunctionError, match="runs already"), kept.run():
                pass
        until(lambda: http.get(path).json()["containers"] == 0)
    with pytest.raises(isobox.FunctionError, match="does not run"):
        ready.remote()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"inputs": [{}]}, "invalid_request"),
        ({"inputs": [{"data": "%%"}]}, "invalid_request"),
        ({"inputs": [{"data": "", "upload": "sha256:" + "0" * 64}]}, "invalid_request"),
        ({"inputs": [], "id": "x"}, "invalid_request"),
        ({"inputs": [{"data": ""}] * 1001}, "invalid_request"),
    ],
)
def test_calls_that_make_no_sense(server: Server, body: dict[str, Any], code: str) -> None:
    with server.client() as http:
        answer = http.post(f"/v1/functions/{fa.square.id}/calls", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_calls_are_made_once_and_closed(server: Server, http: httpx.Client) -> None:
    path = f"/v1/functions/{fa.square.id}/calls"
    body: dict[str, Any] = {"id": "cal" + "b" * 26, "inputs": [{"data": "altbMl0se31d"}], "more": True}  # j[[2],{}]
    first = http.post(path, json=body).json()
    assert http.post(path, json=body).json()["id"] == first["id"]
    call = f"/v1/calls/{first['id']}"
    assert http.post(f"{call}/inputs", json={"first": 5, "inputs": []}).json()["code"] == "inputs_missing"
    assert http.post(f"{call}/inputs", json={"first": 0, "inputs": body["inputs"] * 2}).json()["total"] == 2
    assert http.post(f"{call}/inputs", json={"first": 2, "inputs": body["inputs"]}).json()["code"] == "call_closed"
    until(lambda: http.get(call).json()["complete"])
    found = http.get(call).json()
    assert sorted((each["kind"], each["index"]) for each in found["results"]) == [("done", 0), ("done", 1)]
    assert http.get(call, params={"after": found["next_after"], "wait_s": 1}).json()["results"] == []
    other = {"app": "x", "name": "y", "code": "sha256:" + "0" * 64, "entry": {}}
    assert http.post("/v1/functions", json=other).json()["code"] == "upload_not_found"
    assert http.get("/v1/functions/none").json()["code"] == "function_not_found"


def test_a_killed_server_loses_and_repeats_nothing(own_server: Server) -> None:
    own_server.start()
    found: list[Any] = []
    app = isobox.App("survivor")

    @app.function(max_containers=2)
    def slowly(x: int) -> int:
        import time

        time.sleep(0.05)
        return x

    def work() -> None:
        with app.run(url=own_server.url, api_key=own_server.key):
            found.extend(slowly.map(range(120)))

    worker = threading.Thread(target=work)
    worker.start()
    for _ in range(2):
        before = len(found)
        until(lambda: len(found) > before + 5)  # noqa: B023
        own_server.kill()
        own_server.start()
    worker.join(60)
    assert found == list(range(120))
