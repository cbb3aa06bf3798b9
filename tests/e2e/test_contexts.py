"""Interpreters that keep their state, over HTTP."""

import base64
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server import Server, until

from isobox import Sandbox


@pytest.fixture(scope="module")
def here(server: Server) -> Iterator[str]:
    with Sandbox.create(url=server.url, api_key=server.key, timeout_s=600) as sandbox:
        yield f"/v1/sandboxes/{sandbox.id}"


def run(http: httpx.Client, path: str, code: str, **more: object) -> dict[str, Any]:
    answer = http.post(f"{path}/run", json={"code": code, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def value(answer: dict[str, Any]) -> str:
    return answer["results"][-1]["text/plain"]  # type: ignore[no-any-return]


def test_state_is_kept_and_results_are_told(http: httpx.Client, here: str) -> None:
    first = run(http, here, "x = 20\nprint('printed')\nx + 1")
    assert (first["stdout"], value(first), first["outcome"]["exit_code"]) == ("printed\n", "21", 0)
    assert value(run(http, here, "x * 2")) == "40"
    failed = run(http, here, "import no_such_module")
    assert (failed["outcome"]["exit_code"], failed["error"]["name"]) == (1, "ModuleNotFoundError")
    assert "pip install no_such_module" in failed["error"]["hint"]
    assert failed["error"]["frames"][-1]["source"] == "import no_such_module"
    assert value(run(http, here, "x")) == "20", "an error ends nothing"
    asked = run(http, here, "input('name?')")
    assert "nobody to ask" in asked["error"]["message"]
    assert len(http.get(f"{here}/contexts").json()["contexts"]) == 1


def test_contexts_know_nothing_of_each_other(http: httpx.Client, here: str) -> None:
    made = [http.post(f"{here}/contexts", json={"env": {"N": str(n)}, "workdir": "/tmp"}).json() for n in range(2)]
    for n, each in enumerate(made):
        code = f"import os; y = {n}; os.getcwd(), os.environ['N']"
        assert value(run(http, f"{here}/contexts/{each['id']}", code)) == f"('/tmp', '{n}')"
    assert [value(run(http, f"{here}/contexts/{each['id']}", "y")) for each in made] == ["0", "1"]
    assert run(http, here, "y")["error"]["name"] == "NameError"
    for each in made:
        assert http.delete(f"{here}/contexts/{each['id']}").status_code == 204
        assert http.post(f"{here}/contexts/{each['id']}/run", json={"code": "1"}).status_code == 404


def test_runs_in_one_context_take_turns(http: httpx.Client, here: str) -> None:
    started = [
        http.post(
            f"{here}/run",
            json={
                "code": f"import time; time.sleep(0.1); order.append({n}); order" if n else "order = []",
                "wait": False,
            },
        )
        for n in range(4)
    ]
    last = started[-1].json()["id"]
    until(lambda: http.get(f"{here}/execs/{last}").json()["state"] == "exited")
    assert http.get(f"{here}/execs/{last}").json()["results"] == [
        {"text/plain": "[1, 2, 3]", "application/json": [1, 2, 3]}
    ]


def test_a_run_is_followed_like_an_exec(server: Server, http: httpx.Client, here: str) -> None:
    code = "import time, subprocess\nfor i in range(3):\n    print(i); time.sleep(0.2)\nsubprocess.run(['echo', 'child'])\n'end'"
    started = http.post(f"{here}/run", json={"code": code, "wait": False}).json()
    sandbox = Sandbox.connect(here.split("/")[-1], url=server.url, api_key=server.key)
    began, seen = time.monotonic(), []
    for event in sandbox.process(started["id"]):
        seen.append((event.type, time.monotonic() - began))
    sandbox.close()
    kinds = [kind for kind, _ in seen]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["result", "exit"]
    first = next(at for kind, at in seen if kind == "stdout")
    assert seen[-1][1] - first > 0.3, "it came while the code ran"
    assert http.get(f"{here}/execs/{started['id']}/output").text == "0\n1\n2\nchild\n"


def test_time_outs_and_interrupts_leave_the_context(http: httpx.Client, here: str) -> None:
    run(http, here, "kept = 'kept'")
    late = run(http, here, "while True: pass", timeout_s=0.5)
    assert (late["outcome"]["reason"], late["error"]["kind"]) == ("timeout", "timeout")
    assert "context goes on" in late["error"]["message"]
    started = http.post(f"{here}/run", json={"code": "import time\nprint('in')\ntime.sleep(60)", "wait": False}).json()
    until(lambda: http.get(f"{here}/execs/{started['id']}").json()["stdout"] == "in\n")
    assert http.post(f"{here}/execs/{started['id']}/signal", json={"signal": "INT"}).status_code == 204
    until(lambda: http.get(f"{here}/execs/{started['id']}").json()["state"] == "exited")
    assert http.get(f"{here}/execs/{started['id']}").json()["error"]["name"] == "KeyboardInterrupt"
    assert value(run(http, here, "kept")) == "'kept'"


def test_what_heeds_no_interrupt_is_ended(http: httpx.Client, here: str) -> None:
    context = http.post(f"{here}/contexts", json={}).json()["id"]
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    late = run(http, f"{here}/contexts/{context}", code, timeout_s=0.5)
    assert late["outcome"]["reason"] == "timeout"
    assert "was ended" in late["error"]["message"]
    assert http.post(f"{here}/contexts/{context}/run", json={"code": "1"}).status_code in (404, 409)


def test_a_crash_is_told_and_the_next_run_finds_a_new_interpreter(http: httpx.Client, here: str) -> None:
    crashed = run(http, here, "import os; os.kill(os.getpid(), 11)")
    assert crashed["outcome"]["signal"] == "SIGSEGV"
    assert crashed["error"]["kind"] == "signal"
    until(lambda: not http.get(f"{here}/contexts").json()["contexts"])
    assert value(run(http, here, "'x' in globals()")) == "False"


def test_copies_take_their_contexts_along(http: httpx.Client, here: str) -> None:
    run(http, here, "import random; state = {'n': 1}; random.seed(1)")
    going = "import time\nfor i in range(40):\n    print(i); time.sleep(0.05)\n'end'"
    started = http.post(f"{here}/run", json={"code": going, "wait": False}).json()["id"]
    until(lambda: "5\n" in http.get(f"{here}/execs/{started}").json()["stdout"])
    children = http.post(f"{here}/fork", json={"count": 2}).json()["sandboxes"]
    draws = set()
    for child in children:
        there = f"/v1/sandboxes/{child['id']}"
        copied = http.get(f"{there}/execs").json()["execs"]
        assert [each["forked_from"] for each in copied] == [started]
        until(
            lambda there=there, copied=copied: http.get(f"{there}/execs/{copied[0]['id']}").json()["state"] == "exited"
        )  # type: ignore[misc]
        done = http.get(f"{there}/execs/{copied[0]['id']}").json()
        assert done["results"] == [{"text/plain": "'end'"}]
        printed = [int(line) for line in done["stdout"].split()]
        assert printed == list(range(printed[0], 40))
        assert printed[0] > 0
        draws.add(value(run(http, there, "state['n'] += 1; (state['n'], random.random())")))
        http.delete(there)
    assert len(draws) == 2
    assert all(each.startswith("(2, ") for each in draws)
    until(lambda: http.get(f"{here}/execs/{started}").json()["state"] == "exited")
    assert value(run(http, here, "state['n']")) == "1"
    assert http.get(f"{here}/execs/{started}/output").text == "".join(f"{i}\n" for i in range(40))


def test_a_snapshot_with_a_warm_context(http: httpx.Client, here: str) -> None:
    run(http, here, "warm = 'warm'")
    snapshot = http.post(f"{here}/snapshots", json={}).json()["id"]
    made = http.post("/v1/sandboxes", json={"snapshot": snapshot}).json()
    assert value(run(http, f"/v1/sandboxes/{made['id']}", "warm")) == "'warm'"
    http.delete(f"/v1/sandboxes/{made['id']}")
    http.delete(f"/v1/snapshots/{snapshot}")


def test_a_run_outlives_its_server_once_and_in_order(own_server: Server) -> None:
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox, own_server.client() as http:
        path = f"/v1/sandboxes/{sandbox.id}"
        run(http, path, "x = 1")
        code = "import time\nfor i in range(60):\n    print(i); time.sleep(0.05)\n    if i == 30: display = None\n{'end': x}"
        started = http.post(f"{path}/run", json={"code": code, "wait": False}).json()["id"]
        for _ in range(3):
            time.sleep(0.4)
            own_server.kill()
            own_server.start()
        until(lambda: http.get(f"{path}/execs/{started}").json()["state"] == "exited")
        done = http.get(f"{path}/execs/{started}").json()
        assert done["stdout"] == "".join(f"{i}\n" for i in range(60))
        assert [each["application/json"] for each in done["results"]] == [{"end": 1}]
        assert value(run(http, path, "x")) == "1"


def test_an_idle_context_is_frozen_parked_and_woken(own_server: Server) -> None:
    own_server.environment |= {"ISOBOX_FREEZE_AFTER_S": "0.2", "ISOBOX_PARK_AFTER_S": "0.6"}
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox, own_server.client() as http:
        path = f"/v1/sandboxes/{sandbox.id}"
        run(http, path, "x = 'still'")
        until(lambda: http.get(path).json()["paused_by"] == "idle")
        assert value(run(http, path, "x")) == "'still'"
        paused = http.post(f"{path}/run", json={"code": "import time; time.sleep(1); x", "wait": False}).json()["id"]
        http.post(f"{path}/pause")
        own_server.kill()
        own_server.start()
        http.post(f"{path}/resume")
        until(lambda: http.get(f"{path}/execs/{paused}").json()["state"] == "exited")
        assert value(http.get(f"{path}/execs/{paused}").json()) == "'still'"


def test_an_end_of_the_sandbox_ends_its_run(server: Server, http: httpx.Client) -> None:
    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        path = f"/v1/sandboxes/{sandbox.id}"
        answers: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: answers.append(run(http, path, "import time; time.sleep(60)")))
        thread.start()
        time.sleep(1)
        sandbox.terminate()
        thread.join(timeout=10)
    assert answers[0]["outcome"]["reason"] == "sandbox_ended"


def test_an_image_without_the_language_says_so(server: Server, http: httpx.Client, here: str) -> None:
    refused = http.post(f"{here}/run", json={"code": "1", "language": "node"})
    assert (refused.status_code, refused.json()["code"]) == (422, "language_unavailable")
    assert http.post(f"{here}/run", json={"code": "1", "language": "cobol"}).status_code == 422
    assert http.post(f"{here}/contexts/ctx{'a' * 26}/run", json={"code": "1"}).status_code == 404


@pytest.mark.timeout(600)
def test_node_as_a_second_language(server: Server, http: httpx.Client) -> None:
    with Sandbox.create("node", url=server.url, api_key=server.key) as sandbox:
        path = f"/v1/sandboxes/{sandbox.id}"
        assert value(run(http, path, "let y = [1, 2]; y.length", language="node")) == "2"
        slept = run(http, path, "console.log('in'); await new Promise((r) => setTimeout(r, 20)); y", language="node")
        assert (slept["stdout"], slept["results"][0]["application/json"]) == ("in\n", [1, 2])
        thrown = run(http, path, "function f() { null.x }\nf()", language="node")
        assert thrown["error"]["name"] == "TypeError"
        assert value(run(http, path, "y.push(3)", language="node")) == "3"


@pytest.mark.timeout(600)
def test_the_data_image_shows_figures_and_tables(server: Server, http: httpx.Client) -> None:
    with Sandbox.create("data", url=server.url, api_key=server.key) as sandbox:
        path = f"/v1/sandboxes/{sandbox.id}"
        frame = run(http, path, "import pandas as pd\npd.DataFrame({'a': [1, 2]})", timeout_s=60)
        assert "<table" in frame["results"][0]["text/html"]
        drawn = run(http, path, "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nNone", timeout_s=60)
        assert base64.b64decode(drawn["results"][-1]["image/png"])[:4] == b"\x89PNG"
        assert run(http, path, "!echo from the shell")["stdout"] == "from the shell\n"
        failed = run(http, path, "import numpy as np\nnp.zeros(3)[5]")
        assert failed["error"]["name"] == "IndexError"
        assert value(run(http, path, "await __import__('asyncio').sleep(0, 'slept')")) == "'slept'"
        assert "nobody to ask" in run(http, path, "input()")["error"]["message"]
        numbers = "np.random.random()"
        run(http, path, "np.random.seed(1)")
        child = http.post(f"{path}/fork", json={}).json()["sandboxes"][0]["id"]
        assert value(run(http, f"/v1/sandboxes/{child}", numbers)) != value(run(http, path, numbers))
        http.delete(f"/v1/sandboxes/{child}")
