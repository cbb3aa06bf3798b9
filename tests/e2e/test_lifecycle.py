import io
import json
import tarfile
import threading
import time

import httpx
import pytest
from server import Server

from isobox import ConflictError, NotFound, Sandbox, SandboxEnded


def create(http: httpx.Client, **fields: object) -> dict[str, object]:
    answer = http.post("/v1/sandboxes", json=fields)
    assert answer.status_code == 201, answer.text
    found: dict[str, object] = answer.json()
    return found


def wait(http: httpx.Client, sandbox: dict[str, object], timeout_s: float = 20) -> dict[str, object]:
    found: dict[str, object] = http.get(f"/v1/sandboxes/{sandbox['id']}/wait", params={"timeout_s": timeout_s}).json()
    return found


def test_a_sandbox_ends_at_its_time(http: httpx.Client) -> None:
    made = create(http, timeout_s=1.0)
    ended = wait(http, made)
    assert ended["state"] == "terminated"
    assert ended["termination"]["reason"] == "timeout"  # type: ignore[index]
    assert http.post(f"/v1/sandboxes/{made['id']}/exec", json={"argv": ["true"]}).json()["code"] == "sandbox_ended"


def test_a_sandbox_nobody_uses_ends_and_one_in_use_does_not(http: httpx.Client) -> None:
    made = create(http, idle_timeout_s=1.0)
    result = http.post(f"/v1/sandboxes/{made['id']}/exec", json={"argv": ["sleep", "2"]}).json()
    assert result["outcome"]["exit_code"] == 0
    assert wait(http, made)["termination"]["reason"] == "idle"  # type: ignore[index]


def test_a_job_ends_with_its_command(http: httpx.Client) -> None:
    made = create(http, command=["sh", "-c", "echo working; exit 6"])
    ended = wait(http, made)
    assert ended["termination"] == {"reason": "exited", "exit_code": 6, "detail": "its command has ended"}
    main = http.get(f"/v1/sandboxes/{made['id']}/execs/{ended['main']}").json()
    assert (main["stdout"], main["outcome"]["exit_code"]) == ("working\n", 6)


GROWS = "x = []\nwhile True:\n    x.append(bytearray(1 << 20))"
HUNGRY = {
    "one that grows": ["python3", "-c", GROWS],
    "one that jumps": ["python3", "-c", "x = bytearray(700_000_000)"],
    "threads": ["python3", "-c", f"import threading\nfor _ in range(4):\n    threading.Thread(target=exec, args=({GROWS!r},)).start()"],
    "a child, whose parent fails": ["sh", "-c", f"python3 -c '{GROWS}'; exit $?"],
    "node": ["node", "-e", "const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1))"],
}  # fmt: skip


@pytest.mark.parametrize("argv", HUNGRY.values(), ids=HUNGRY.keys())
def test_out_of_memory_ends_the_exec_and_is_told_with_peak_and_limit(http: httpx.Client, argv: list[str]) -> None:
    image = "node" if argv[0] == "node" else "python"
    made = create(http, image=image, resources={"memory_mb": 96, "disk_mb": 32})
    path = f"/v1/sandboxes/{made['id']}"
    http.put(f"{path}/files", params={"path": "/home/user/work"}, content=b"half done")
    result = http.post(f"{path}/exec", json={"argv": argv}).json()
    assert result["outcome"]["exit_code"] == 137
    assert result["outcome"]["reason"] == ("exit" if argv[0] == "sh" else "oom")
    assert result["error"]["kind"] == "oom"
    assert "memory_mb is 96" in result["error"]["message"]
    assert "larger memory_mb" in result["error"]["hint"]
    after = http.post(f"{path}/exec", json={"argv": ["cat", "work"]}).json()
    assert after["stdout"] == "half done", "the sandbox and its files go on"
    http.delete(path)


def test_out_of_memory_ends_the_exec_and_not_the_copy(http: httpx.Client) -> None:
    made = create(http, resources={"memory_mb": 96, "disk_mb": 32})
    path = f"/v1/sandboxes/{made['id']}"
    child = http.post(f"{path}/fork", json={}).json()["sandboxes"][0]
    assert http.post(f"{path}/pause").json()["state"] == "paused"
    assert http.post(f"{path}/resume").json()["state"] == "running"
    for copy in (path, f"/v1/sandboxes/{child['id']}"):
        result = http.post(f"{copy}/exec", json={"argv": ["python3", "-c", GROWS]}).json()
        assert result["outcome"]["reason"] == "oom"
        assert "was killed" in result["error"]["message"]
        after = http.post(f"{copy}/exec", json={"argv": ["echo", "on"]}).json()
        assert after["stdout"] == "on\n", "the copy goes on"
        http.delete(copy)


def test_hungry_children_end_one_by_one_and_their_parent_goes_on(http: httpx.Client) -> None:
    made = create(http, resources={"memory_mb": 128, "disk_mb": 32})
    path = f"/v1/sandboxes/{made['id']}"
    parent = f"""if True:
        import subprocess, sys
        children = [subprocess.Popen([sys.executable, "-c", {GROWS!r}]) for _ in range(3)]
        print(all(child.wait() != 0 for child in children))"""
    result = http.post(f"{path}/exec", json={"argv": ["python3", "-c", parent]}).json()
    assert (result["stdout"], result["outcome"]["exit_code"]) == ("True\n", 0)
    http.delete(path)


def test_files_on_disk_are_not_memory(http: httpx.Client) -> None:
    made = create(http, resources={"memory_mb": 96, "disk_mb": 512})
    path = f"/v1/sandboxes/{made['id']}"
    writing = "dd if=/dev/zero of=big bs=1M count=400 2>/dev/null; cksum big > /dev/null; echo done"
    result = http.post(f"{path}/exec", json={"shell": writing}).json()
    assert (result["stdout"], result["error"]) == ("done\n", None)
    hungry = http.post(f"{path}/exec", json={"argv": ["python3", "-c", "x = bytearray(300_000_000)"]}).json()
    assert hungry["outcome"]["reason"] == "oom", "what the disk may have is not for programs"
    http.delete(path)


def test_out_of_memory_ends_a_run_and_its_context(server: Server) -> None:
    with Sandbox.create(url=server.url, api_key=server.key, resources={"memory_mb": 96}) as small:
        result = small.run("x = bytearray(700_000_000)")
        assert result.error is not None
        assert result.outcome is not None
        assert (result.error.kind, result.outcome.reason) == ("oom", "oom")
        assert small.run("1 + 1").text == "2"


def tar_of(size: int) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("member")
        member.size = size
        archive.addfile(member, io.BytesIO(bytes(size)))
    return packed.getvalue()


def test_a_full_disk_is_an_error_not_an_end(http: httpx.Client) -> None:
    made = create(http, resources={"memory_mb": 128, "disk_mb": 32})
    path = f"/v1/sandboxes/{made['id']}"
    result = http.post(
        f"{path}/exec", json={"shell": "dd if=/dev/zero of=big bs=1M count=100; rm big; echo back > f; cat f"}
    ).json()
    assert "No space left" in result["stderr"]
    assert result["stdout"] == "back\n"
    answer = http.put(f"{path}/files", params={"path": "/home/user/big"}, content=b"x" * (64 << 20))
    assert (answer.status_code, answer.json()["code"]) == (507, "no_space")
    answer = http.put(f"{path}/files/archive", params={"path": "/home/user/folder"}, content=tar_of(64 << 20))
    assert (answer.status_code, answer.json()["code"]) == (507, "no_space"), "of an archive as well"
    http.delete(f"{path}/files", params={"path": "/home/user/folder", "recursive": True})
    assert [e["name"] for e in http.get(f"{path}/files/list", params={"path": "/home/user"}).json()["entries"]] == [
        ".local",
        "f",
    ]
    http.delete(path)


def test_pause_stands_still_and_resume_goes_on(sandbox: Sandbox) -> None:
    process = sandbox.start("/bin/sh", "-c", "while :; do date +%s%N; sleep 0.05; done")
    time.sleep(0.3)
    assert sandbox.pause().state == "paused"
    time.sleep(0.1)
    before = process.poll().stdout
    time.sleep(0.4)
    assert process.poll().stdout == before
    with pytest.raises(ConflictError) as refused:
        sandbox.exec("true")
    assert refused.value.code == "sandbox_paused"
    assert sandbox.resume().state == "running"
    time.sleep(0.3)
    assert len(process.poll().stdout) > len(before)
    process.kill()


def test_terminate_is_idempotent_and_ends_what_runs(http: httpx.Client, server: Server) -> None:
    made = create(http)
    path = f"/v1/sandboxes/{made['id']}"
    started = http.post(f"{path}/exec", json={"argv": ["sleep", "100"], "wait": False}).json()
    first, second = http.delete(path).json(), http.delete(path).json()
    assert first == second
    assert first["termination"]["reason"] == "requested"
    deadline = time.monotonic() + 5
    while (ended := http.get(f"{path}/execs/{started['id']}").json())["state"] != "exited":
        assert time.monotonic() < deadline
    assert ended["outcome"]["reason"] == "sandbox_ended"
    assert not (server.state / "run" / str(made["id"])).exists()


def test_events_tell_the_story_and_end_the_stream(http: httpx.Client) -> None:
    made = create(http, timeout_s=1.5)
    text = http.get(f"/v1/sandboxes/{made['id']}/events").text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events] == ["state", "expiring", "state", "end"]
    assert events[-1]["data"]["termination"]["reason"] == "timeout"


def test_lists_labels_and_pages(http: httpx.Client) -> None:
    made = [create(http, labels={"suite": "pages", "n": str(i)}) for i in range(3)]
    page = http.get("/v1/sandboxes", params={"label": "suite:pages", "limit": 2}).json()
    assert [s["id"] for s in page["sandboxes"]] == [made[2]["id"], made[1]["id"]]
    rest = http.get("/v1/sandboxes", params={"label": "suite:pages", "limit": 2, "cursor": page["next_cursor"]}).json()
    assert [s["id"] for s in rest["sandboxes"]] == [made[0]["id"]]
    assert rest["next_cursor"] is None
    one = http.get("/v1/sandboxes", params=[("label", "suite:pages"), ("label", "n:1"), ("state", "running")]).json()
    assert [s["id"] for s in one["sandboxes"]] == [made[1]["id"]]
    for each in made:
        http.delete(f"/v1/sandboxes/{each['id']}")


def test_patch_extends_and_relabels(http: httpx.Client) -> None:
    made = create(http, timeout_s=30)
    path = f"/v1/sandboxes/{made['id']}"
    patched = http.patch(path, json={"timeout_s": 900, "labels": {"a": "b"}}).json()
    assert patched["expires_at"] > made["expires_at"]
    assert patched["labels"] == {"a": "b"}
    http.delete(path)


def test_the_same_idempotency_key_creates_once(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "one-and-only"}
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(http.post("/v1/sandboxes", json={"name": "once"}, headers=headers))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = http.post("/v1/sandboxes", json={"name": "other"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    http.delete(f"/v1/sandboxes/{answers[0].json()['id']}")


def test_a_foreign_sandbox_is_an_absent_one(own_server: Server) -> None:
    own_server.state.mkdir()
    (own_server.state / "keys").write_text("other other-key-0123456789\n")
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox:
        absent = "sbx" + "a" * 26
        with own_server.client() as http:
            foreign = httpx.get(
                f"{own_server.url}/v1/sandboxes/{sandbox.id}", headers={"Authorization": "Bearer other-key-0123456789"}
            )
            missing = http.get(f"/v1/sandboxes/{absent}")
        assert foreign.status_code == missing.status_code == 404
        skip = {"request_id"}
        assert {k: v for k, v in foreign.json().items() if k not in skip} == {
            k: v for k, v in missing.json().items() if k not in skip
        }
        with pytest.raises(NotFound):
            Sandbox.connect(sandbox.id, url=own_server.url, api_key="other-key-0123456789")


def test_root_can_be_forbidden(own_server: Server) -> None:
    own_server.environment["ISOBOX_ALLOW_ROOT"] = "0"
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox, own_server.client() as http:
        for body in ({"argv": ["id"], "user": "root"}, {"argv": ["id"], "user": "0:0"}, {"argv": ["id"], "user": "00"}):
            answer = http.post(f"/v1/sandboxes/{sandbox.id}/exec", json=body)
            assert (answer.status_code, answer.json()["code"]) == (403, "root_forbidden"), body
        assert http.post("/v1/sandboxes", json={"user": "root"}).status_code == 403


def test_a_process_one_that_is_gone_or_silent_is_told_and_can_be_ended(http: httpx.Client, server: Server) -> None:
    made = create(http)
    path = f"/v1/sandboxes/{made['id']}"
    # Stopped from outside, the way an operator can: PID 1 cannot answer now.
    import asyncio

    from isolation import runsc
    from isolation.control import Control

    control = Control(runsc.read_state(server.state / "run" / str(made["id"]) / "runsc").control_path, str(made["id"]))
    asyncio.run(control.pause())
    began = time.monotonic()
    answer = http.post(f"{path}/exec", json={"argv": ["true"]})
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (504, "guest_unresponsive", True)
    assert time.monotonic() - began < 20
    assert http.delete(path).json()["state"] == "terminated"


def test_an_end_from_inside_is_told(http: httpx.Client) -> None:
    made = create(http, user="root")
    http.post(
        f"/v1/sandboxes/{made['id']}/exec", json={"shell": "kill -9 1; exec 3>/proc/1/fd/1; sleep 1", "wait": False}
    )
    http.post(
        f"/v1/sandboxes/{made['id']}/exec", json={"shell": "head -c 100000 /dev/zero > /proc/1/fd/1", "timeout_s": 5}
    )
    ended = wait(http, made, 5)
    if ended["state"] == "running":  # the guest's kernel let root do neither
        http.delete(f"/v1/sandboxes/{made['id']}")
    else:
        assert ended["termination"]["reason"] in ("exited", "lost")  # type: ignore[index]


def test_python_client_errors_are_typed(server: Server) -> None:
    sandbox = Sandbox.create(url=server.url, api_key=server.key)
    sandbox.terminate()
    with pytest.raises(SandboxEnded):
        sandbox.exec("true")
    with pytest.raises(NotFound) as missing:
        Sandbox.create("no-such-image", url=server.url, api_key=server.key)
    assert "known are: agent, base, browser, data, node, python" in str(missing.value)
    sandbox.close()
