"""GPUs: real NVML calls into a library that stands for the driver's, real device nodes, the real runsc with nvproxy.

No program can run on such a GPU. `make gpu-check` is for a machine that has one.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from machine import driver as machines_driver
from machine import release
from openai import OpenAI
from server import Server, until

import isobox
from agent_examples import gpu_agent, scripted_model
from isobox import Sandbox
from tests.fake_gpu import Fake, FakeMachine, build, device_nodes

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    with device_nodes(range(8)):
        yield


@pytest.fixture
def machine(tmp_path: Path, libraries: Path) -> FakeMachine:
    found = FakeMachine(tmp_path, libraries, machines_driver())
    found.set([Fake(n, numa=n // 4, links="a" if n < 4 else "b") for n in range(8)])
    return found


@pytest.fixture
def server(machine: FakeMachine, tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "state", **machine.environment)
    yield running
    running.end()


def where(server: Server) -> dict[str, str]:
    return {"url": server.url, "api_key": server.key}


def states(server: Server) -> dict[str, str]:
    return {each.uuid: each.state for each in isobox.gpus(**where(server))}


def reading(environment: dict[str, str], folder: Path | None) -> dict[str, Any]:
    program = (
        "import json, dataclasses, pathlib, sys; from gpu.reader import Reader;"
        "r = Reader(pathlib.Path(sys.argv[1]) if sys.argv[1:] else None); r.read(); found = r.read();"
        "print(json.dumps({'driver': found.driver, 'problem': found.problem, 'sick': found.sick,"
        " 'devices': [[d.uuid, d.kind, d.numa, sorted(d.links), d.parent, d.slices, d.pci] for d in found.devices],"
        " 'samples': {u: dataclasses.astuple(s) for u, s in found.samples.items()}})); r.close()"
    )
    command = [sys.executable, "-c", program, *([str(folder)] if folder else [])]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_nvml_tells(machine: FakeMachine, libraries: Path) -> None:
    machine.set(
        [
            Fake(0, links="a"),
            Fake(1, links="a", numa=-1),
            Fake(2, "NVIDIA A100-SXM4-80GB", slices=2),
            Fake(3, "lost"),
            Fake(4, "NVIDIA L4", memory_mb=23034, errors=5, pid=77),
        ]
    )
    machine.xid(79, 0)
    machine.xid(31, 1)  # a program's own fault
    found = reading(machine.environment, libraries)
    assert found["driver"] == machines_driver()
    assert [each[:3] for each in found["devices"]] == [
        ["GPU-00000000", "h100", 0],
        ["GPU-00000001", "h100", -1],
        ["GPU-00000002", "a100-80gb", 0],
        ["MIG-GPU-00000002-0", "a100-80gb.1g.10gb", 0],
        ["MIG-GPU-00000002-1", "a100-80gb.1g.10gb", 0],
        ["GPU-00000004", "l4", 0],
    ]
    assert found["devices"][0][3:] == [["GPU-00000001"], None, 0, "00000000:01:00.0"]
    assert found["devices"][2][5] == 2
    assert found["devices"][3][4] == "GPU-00000002"
    assert found["sick"] == {
        "GPU-00000000": "the driver reported Xid 79",
        "GPU-00000004": "5 memory errors that could not be corrected",
    }
    assert found["samples"]["GPU-00000004"] == [3, 42, 44, 123.456, [77]]
    assert reading({}, None)["problem"].startswith("NVML: ")


def test_a_sandbox_has_its_own_and_nobody_elses(server: Server, machine: FakeMachine) -> None:
    server.start()
    with Sandbox.create(gpu={"count": 2, "kind": ["b200", "h100"]}, **where(server)) as sandbox:
        mine = [each["uuid"] for each in sandbox.info.raw["gpus"]]
        assert len(mine) == 2
        seen = sandbox.exec("sh", "-c", "ls /dev | grep nvidia; echo $CUDA_VISIBLE_DEVICES; ls /usr/local/nvidia/lib64")
        minors = sorted(int(uuid.removeprefix("GPU-"), 16) for uuid in mine)
        names = [f"nvidia{minor}" for minor in minors]
        assert seen.stdout.split() == [
            *sorted(["nvidia-uvm", *names, "nvidiactl"]),
            ",".join(mine),
            *("libcuda.so", "libcuda.so.1", "libnvidia-ml.so", "libnvidia-ml.so.1"),
        ]
        refused = sandbox.exec("sh", "-c", "touch /usr/local/nvidia/lib64/x", user="root").stderr
        assert "Read-only" in refused
        other = next(n for n in range(8) if n not in minors)
        # A node of another GPU leads nowhere: runsc opens nodes in a folder that holds the granted ones alone. A newer one
        # lets nobody make such a node.
        made = f"mknod /tmp/other c 195 {other} && head -c 1 /tmp/other"
        opened = sandbox.exec("sh", "-c", made, user="root")
        assert opened.exit_code != 0
        assert ("No such file" if release() < 20250101 else "not permitted") in opened.stderr
        cached = sandbox.exec("sh", "-c", "ldconfig -p | grep -c nvidia/lib64", user="root").stdout
        assert int(cached) >= 2
        shown = states(server)
        assert [uuid for uuid, state in shown.items() if state == "used"] == sorted(mine)
        with server.client() as http, server.operator() as operator:
            metrics = operator.get("/metrics").text
            assert f'isobox_gpu_used{{kind="h100",sandbox="{sandbox.id}",uuid="{mine[0]}"}} 1.0' in metrics
            for refused_call in (
                http.post(f"/v1/sandboxes/{sandbox.id}/snapshots", json={}),
                http.post(f"/v1/sandboxes/{sandbox.id}/fork", json={"count": 1}),
                http.post(f"/v1/sandboxes/{sandbox.id}/pause"),
            ):
                assert refused_call.status_code == 409, refused_call.text
                assert refused_call.json()["code"] == "gpu_not_copied"
        kept = sandbox.snapshot(kind="filesystem")
    with Sandbox.create(snapshot=kept.id, **where(server)) as without:
        assert without.exec("sh", "-c", "ls /dev | grep -c nvidia; echo $CUDA_VISIBLE_DEVICES").stdout == "0\n\n"
    until(lambda: set(states(server).values()) == {"free"})
    assert sorted(machine.scrubbed()) == sorted(mine)
    with server.client() as http:
        usage = http.get("/v1/usage").json()
    used = next(each for each in usage["usage"] if each["sandbox"] == sandbox.id)
    assert used["gpu_s"]["h100"] == pytest.approx(2 * used["seconds"], abs=0.01)
    assert usage["total_gpu_s"] == used["gpu_s"]


@pytest.mark.parametrize(
    ("asked", "status", "code", "words"),
    [
        ({"kind": "b200"}, 422, "gpu_impossible", "it has 8 x h100"),
        ({"count": 9}, 422, "gpu_impossible", "does not have 9 x any"),
        ({"count": 0}, 422, "invalid_request", "greater than or equal to 1"),
        ({"count": -1}, 422, "invalid_request", "greater than or equal to 1"),
        ({"kind": ""}, 422, "invalid_request", "pattern"),
        ({"kind": []}, 422, "invalid_request", "at least 1"),
        ({"memory_mb": 90000}, 422, "gpu_impossible", "of at least 90000 MiB"),
        ({"wait_s": -1}, 422, "invalid_request", "wait_s"),
        ({"counts": 1}, 422, "invalid_request", "counts"),
    ],
)
def test_what_cannot_be(
    server: Server, machine: FakeMachine, asked: dict[str, Any], status: int, code: str, words: str
) -> None:
    with Sandboxless(server) as http:
        answer = http.post("/v1/sandboxes", json={"image": "base", "resources": {"gpu": asked}})
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert words in answer.json()["detail"] + answer.json()["hint"]
        assert set(states(server).values()) == {"free"}


class Sandboxless:
    """A client of a started server."""

    def __init__(self, server: Server) -> None:
        server.start()
        self._http = server.client()

    def __enter__(self) -> httpx.Client:
        return self._http

    def __exit__(self, *_: object) -> None:
        self._http.close()


def test_who_comes_too_late_is_told_or_waits_in_turn(server: Server, machine: FakeMachine) -> None:
    machine.set([Fake(0), Fake(1)])
    server.start()
    first = Sandbox.create("base", gpu={"count": 2}, **where(server))
    with pytest.raises(isobox.ConflictError, match="1 x h100 cannot be had now: 2 used") as refused:
        Sandbox.create("base", gpu="h100", **where(server))
    assert "wait for yours with gpu.wait_s" in str(refused.value)
    with pytest.raises(isobox.ConflictError, match=r"waited 0\.3 s, and was number 1"):
        Sandbox.create("base", gpu={"wait_s": 0.3}, **where(server))
    order: list[int] = []
    waiting = []

    def ask(number: int) -> None:
        with Sandbox.create("base", gpu={"count": 2, "wait_s": 60}, labels={"n": str(number)}, **where(server)):
            order.append(number)

    with server.client() as http:
        for number in (1, 2):
            thread = threading.Thread(target=ask, args=(number,))
            thread.start()
            waiting.append(thread)
            until(lambda: http.get("/v1/gpus").json()["waiting"] == number)  # noqa: B023
        creating = http.get("/v1/sandboxes", params={"state": "creating", "label": "n:2"}).json()["sandboxes"]
        events = [
            json.loads(line.removeprefix("data: "))
            for line in first_lines(http, f"/v1/sandboxes/{creating[0]['id']}/events", 4)
            if line.startswith("data: ")
        ]
        assert (events[0]["type"], events[0]["data"]) == ("gpu_waiting", {"position": 2})
        first.terminate()
        for thread in waiting:
            thread.join(60)
    first.close()
    assert order == [1, 2]


def first_lines(http: httpx.Client, path: str, count: int) -> list[str]:
    lines = []
    with http.stream("GET", path) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if len(lines) == count:
                break
    return lines


def test_one_that_waits_can_be_ended(server: Server, machine: FakeMachine) -> None:
    machine.set([Fake(0)])
    server.start()
    with Sandbox.create("base", gpu="any", **where(server)), server.client() as http:
        found: list[httpx.Response] = []
        body = {"image": "base", "resources": {"gpu": {"wait_s": 60}}}
        thread = threading.Thread(target=lambda: found.append(http.post("/v1/sandboxes", json=body)))
        thread.start()
        until(lambda: http.get("/v1/gpus").json()["waiting"] == 1)
        waiting = http.get("/v1/sandboxes", params={"state": "creating"}).json()["sandboxes"][0]
        assert http.delete(f"/v1/sandboxes/{waiting['id']}").json()["state"] == "terminated"
        thread.join(20)
        assert found[0].json()["code"] == "sandbox_ended"
        assert http.get("/v1/gpus").json()["waiting"] == 0


def test_what_falls_ill_is_told_and_kept_apart(server: Server, machine: FakeMachine) -> None:
    machine.set([Fake(0), Fake(1)])
    server.start()
    with Sandbox.create("base", gpu="h100", **where(server)) as sandbox, server.client() as http:
        mine = sandbox.info.raw["gpus"][0]["uuid"]
        machine.xid(79, int(mine.removeprefix("GPU-"), 16))
        until(lambda: states(server)[mine] == "quarantined")
        sandbox.terminate()
        told = [each for each in events_of(http, sandbox.id) if each["type"] == "gpu_failed"]
        assert told[0]["data"]["detail"] == "the driver reported Xid 79"
        with pytest.raises(isobox.ConflictError, match="1 free, 1 quarantined"):
            Sandbox.create("base", gpu={"count": 2}, **where(server))
        server.kill()
        server.start()
        until(lambda: states(server)[mine] == "quarantined")
    with server.client() as http, server.operator() as operator:
        refused = http.post(f"/v1/gpus/{mine}/clear")
        assert (refused.status_code, refused.json()["code"]) == (403, "operator_key_needed")
        assert operator.post(f"/v1/gpus/{mine}/clear").status_code == 204
        assert operator.post("/v1/gpus/GPU-none/clear").status_code == 404
        until(lambda: set(states(server).values()) == {"free"})
        machine.set([Fake(0)])
        until(lambda: len(states(server)) == 1)
        assert http.post("/v1/sandboxes", json={"resources": {"gpu": {"count": 2}}}).json()["code"] == "gpu_impossible"


def events_of(http: httpx.Client, sandbox: str) -> list[dict[str, Any]]:
    text = http.get(f"/v1/sandboxes/{sandbox}/events").text
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def test_what_cannot_be_cleaned_is_kept_apart(server: Server, machine: FakeMachine) -> None:
    machine.set([Fake(0), Fake(1)])
    server.start()
    with Sandbox.create("base", gpu="h100", **where(server)) as first:
        mine = first.info.raw["gpus"][0]["uuid"]
        machine.change(int(mine.removeprefix("GPU-"), 16), pid=4242)
    until(lambda: states(server)[mine] == "quarantined")
    reason = next(each.reason for each in isobox.gpus(**where(server)) if each.uuid == mine)
    assert reason == "processes still use it: 4242"
    assert machine.scrubbed() == []


def test_a_failing_scrub_quarantines(machine: FakeMachine, tmp_path: Path) -> None:
    machine.set([Fake(0)])
    running = Server(tmp_path / "state", FAKE_CUDA_FAILS="cuMemsetD8_v2", **machine.environment).start()
    try:
        with Sandbox.create("base", gpu="h100", **where(running)):
            pass
        until(lambda: states(running) == {"GPU-00000000": "quarantined"})
        reason = isobox.gpus(**where(running))[0].reason
        assert reason == "its memory could not be overwritten: cuMemsetD8_v2 failed with CUDA error 999"
    finally:
        running.end()


def test_a_killed_server_gives_nothing_twice(server: Server, machine: FakeMachine) -> None:
    machine.set([Fake(0), Fake(1)])
    server.start()
    kept = Sandbox.create("base", gpu="h100", timeout_s=600, **where(server))
    gone = Sandbox.create("base", gpu="h100", timeout_s=600, **where(server))
    pid = int(
        next(Path(server.state, "run", gone.id).glob("sandbox.json")).read_text().split('"pid": ')[1].split(",")[0]
    )
    server.kill()
    os.kill(pid, 9)
    server.start()
    mine, theirs = (each.info.raw["gpus"][0]["uuid"] for each in (kept, gone))
    until(lambda: states(server) == {mine: "used", theirs: "free"})
    assert machine.scrubbed() == [theirs]
    with pytest.raises(isobox.ConflictError):
        Sandbox.create("base", gpu={"count": 2}, **where(server))
    assert kept.exec("sh", "-c", "echo $CUDA_VISIBLE_DEVICES").stdout.strip() == mine
    for each in (kept, gone):
        each.terminate()
        each.close()


def test_drivers_nodes_and_slices_that_do_not_fit(machine: FakeMachine, tmp_path: Path) -> None:
    machine.set([Fake(0)], driver="999.1.1")
    for environment, code, words in (
        ({}, "gpu_unusable", "ISOBOX_GPU_DRIVER_ABI=latest"),
        ({"ISOBOX_GPU_DRIVER_ABI": "latest"}, None, ""),
    ):
        running = Server(tmp_path / f"state{len(environment)}", **machine.environment, **environment).start()
        try:
            with running.client() as http:
                answer = http.post("/v1/sandboxes", json={"image": "base", "resources": {"gpu": {}}}).json()
                assert answer.get("code") == code
                assert words in answer.get("hint", "")
        finally:
            running.end()
    machine.set([Fake(0, slices=2), Fake(9)])
    running = Server(tmp_path / "sliced", **machine.environment).start()
    try:
        with running.client() as http:
            kinds = {each["kind"]: each["state"] for each in http.get("/v1/gpus").json()["gpus"]}
            assert kinds == {"h100": "free", "h100.1g.10gb": "free"}
            for asked, words in (
                ({"kind": "h100.1g.10gb"}, "MIG slice"),
                ({"kind": "h100"}, "there is no /dev/nvidia9"),
            ):
                answer = http.post("/v1/sandboxes", json={"image": "base", "resources": {"gpu": asked}}).json()
                assert words in answer["detail"]
            assert {each["state"] for each in http.get("/v1/gpus").json()["gpus"]} == {"free", "sliced"}
    finally:
        running.end()


def test_pools_of_those_with_gpus(server: Server, machine: FakeMachine) -> None:
    machine.set([Fake(0)])
    server.start()
    with server.operator() as operator:
        for _ in range(2):
            with Sandbox.create("base", gpu="h100", **where(server)):
                pass
            until(lambda: set(states(server).values()) == {"free"})
        until(lambda: 'kind="equipped",memory_mb="1024"} 1.0' in operator.get("/metrics").text, timeout=30)
        with Sandbox.create("base", gpu="h100", **where(server)) as sandbox:
            assert sandbox.exec("sh", "-c", "ls /dev | grep -c nvidia").stdout == "3\n"
            assert 'found="hit",image=' in operator.get("/metrics").text


def test_by_hand_and_by_an_agent(server: Server, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.set([Fake(0), Fake(1, "NVIDIA L4", memory_mb=23034, errors=1)])
    server.start()
    monkeypatch.setenv("ISOBOX_URL", server.url)
    monkeypatch.setenv("ISOBOX_API_KEY", server.key)

    def cli(*argv: str) -> str:
        command = [sys.executable, "-m", "isobox.cli.main", *argv]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    until(lambda: "quarantined" in states(server).values())
    lines = cli("gpu", "ls").splitlines()
    assert lines[0].split() == ["UUID", "KIND", "STATE", "MEMORY", "BUSY", "HEAT", "SANDBOX"]
    assert lines[1].split()[:3] == ["GPU-00000000", "h100", "free"]
    assert "quarantined (1 memory errors that could not be corrected)" in lines[2]
    assert cli("run", "--image", "base", "--gpu", "h100", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES") == (
        "GPU-00000000\n"
    )
    assert "h100 " in cli("usage").splitlines()[-1]
    until(lambda: "free" in states(server).values())
    shown: list[str] = []
    with scripted_model.serving() as url, OpenAI(base_url=url, api_key="none-needed") as client:
        assert "GPU: GPU-00000000" in gpu_agent.run(client, "scripted", show=shown.append)
        assert any("with a h100" in line for line in shown)
        machine.set([])
        until(lambda: not states(server))
        assert "GPU: none" in gpu_agent.run(client, "scripted", show=shown.append)
        assert any("no GPU is free here" in line for line in shown)
    assert cli("gpu", "ls") == "no GPU (the driver knows none)\n"


def test_a_host_without(tmp_path: Path) -> None:
    running = Server(tmp_path / "state", ISOBOX_GPUS="0").start()
    try:
        with running.client() as http:
            answer = http.post("/v1/sandboxes", json={"image": "base", "resources": {"gpu": {}}}).json()
            assert (answer["code"], answer["detail"]) == ("gpu_impossible", "this machine has no GPU")
            assert http.get("/v1/gpus").json()["problem"] == "the operator switched GPUs off (ISOBOX_GPUS=0)"
    finally:
        running.end()
