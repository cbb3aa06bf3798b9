import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from machine import release

from isobox import ExecFailed, Sandbox


def test_output_exit_code_and_usage(sandbox: Sandbox) -> None:
    result = sandbox.exec(shell="echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    assert result.outcome is not None
    assert result.outcome.reason == "exit"
    burnt = sandbox.exec("python3", "-c", "x = bytearray(40_000_000); sum(range(2_000_000))").check()
    assert burnt.cpu_s is not None
    assert burnt.cpu_s > 0.02
    assert burnt.max_rss_mb is not None
    assert 40 < burnt.max_rss_mb < 200


def test_who_and_where(sandbox: Sandbox) -> None:
    text = sandbox.exec(shell="id -un; id -u; pwd; echo $HOME; grep -E 'Cap(Eff|Bnd)' /proc/self/status").stdout
    assert text.split() == ["user", "1000", "/home/user", "/home/user", "CapEff:", "0" * 16, "CapBnd:", "0" * 16]
    assert sandbox.exec("pwd", workdir="/tmp").stdout == "/tmp\n"
    assert sandbox.exec(shell="echo $FOO", env={"FOO": "bar"}).stdout == "bar\n"
    assert sandbox.exec("id", "-u", user="1000:33").stdout == "1000\n"


def test_root_gets_enough_for_packages_and_no_more(sandbox: Sandbox) -> None:
    script = """
        grep CapEff /proc/self/status
        useradd -m alice && chown alice /tmp/x.$$ 2>/dev/null; touch /etc/made && chown alice /etc/made && su alice -c id
        mount -t tmpfs none /mnt 2>&1; echo "mount $?"
    """
    text = sandbox.exec(shell=script, user="root").stdout
    assert "00000000800404fb" in text
    assert "(alice)" in text
    assert "mount 0" not in text


def test_a_setuid_program_gains_nothing(sandbox: Sandbox) -> None:
    text = sandbox.exec(shell="ls -l /bin/su | cut -c4; cat /proc/self/status | grep CapBnd").stdout
    assert text.split() == ["s", "CapBnd:", "0" * 16]


def test_stdin_as_text_as_stream_and_none(sandbox: Sandbox) -> None:
    assert sandbox.exec("cat", stdin="héllo").stdout == "héllo"
    assert sandbox.exec("cat").stdout == ""  # /dev/null: nothing waits for ever
    process = sandbox.start("sha256sum")
    data = bytes(range(256)) * 8192
    assert process.write(data) == len(data)
    process.close_stdin()
    import hashlib

    assert process.wait().stdout.split()[0] == hashlib.sha256(data).hexdigest()


def test_the_end_of_a_process_does_not_wait_for_its_children(sandbox: Sandbox) -> None:
    began = time.monotonic()
    result = sandbox.exec(shell="sleep 30 & echo started")
    assert result.stdout == "started\n"
    assert time.monotonic() - began < 10


def test_a_timeout_kills_the_whole_group(sandbox: Sandbox) -> None:
    result = sandbox.exec(shell="echo $$; sleep 987 & sleep 986", timeout_s=0.5)
    assert result.outcome is not None
    assert (result.outcome.reason, result.outcome.signal) == ("timeout", "SIGKILL")
    assert result.error is not None
    assert "timeout_s=0.5" in result.error.message
    assert sandbox.exec(shell="ps ax | grep -c '[s]leep 98[67]'").stdout == "0\n"


def test_signals_reach_the_group_or_the_process(sandbox: Sandbox) -> None:
    process = sandbox.start("/bin/sh", "-c", "trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.1; done")
    events = iter(process)
    while next(events).data != b"ready\n":
        pass
    process.signal("term", group=False)
    result = process.wait()
    assert (result.stdout, result.exit_code) == ("ready\nterm\n", 9)
    process = sandbox.start("sleep", "100")
    process.kill()
    outcome = process.wait().outcome
    assert outcome is not None
    assert (outcome.reason, outcome.signal) == ("killed", "SIGKILL")


def test_a_terminal_with_job_control_and_resize(sandbox: Sandbox) -> None:
    process = sandbox.start("bash", "--norc", pty={"rows": 30, "cols": 90})
    process.write("PS1='$ '; tty; stty size; echo yes > /dev/tty\n")
    process.write("sleep 100\n")
    time.sleep(0.5)
    process.write("\x03")  # Ctrl-C ends the sleep, not the shell
    process.write("echo still-$((40+2))\n")
    process.write("exit 4\n")
    result = process.wait()
    assert result.exit_code == 4
    assert "/dev/pts/" in result.stdout
    assert "30 90" in result.stdout
    # gVisor knows /dev/tty since 2024-10-02; before, opening it is an I/O error whatever we do.
    assert ("\nyes" in result.stdout) == (release() >= 20241007)
    assert "still-42" in result.stdout


@pytest.mark.parametrize(
    ("argv", "reason", "code", "kind"),
    [
        (["no-such-program"], "not_found", 127, "start"),
        (["/etc/passwd"], "not_executable", 126, "start"),
        (["/bin/sh", "-c", "kill -SEGV $$"], "signal", 139, "signal"),
        (["/bin/sh", "-c", "nope"], "exit", 127, "shell"),
        (["python3", "-c", "import nope"], "exit", 1, "python"),
    ],
)
def test_failures_are_told_for_a_model(sandbox: Sandbox, argv: list[str], reason: str, code: int, kind: str) -> None:
    result = sandbox.exec(*argv)
    assert result.outcome is not None
    assert (result.outcome.reason, result.exit_code) == (reason, code)
    assert result.error is not None
    assert result.error.kind == kind
    assert result.error.hint
    with pytest.raises(ExecFailed, match=result.error.name):
        result.check()


def test_a_python_error_has_its_frames(sandbox: Sandbox) -> None:
    sandbox.files.write("/home/user/app.py", "def f(x):\n    return 1 / x\n\nf(0)\n")
    error = sandbox.exec("python3", "app.py").error
    assert error is not None
    assert (error.name, error.message) == ("ZeroDivisionError", "division by zero")
    assert [(frame.line, frame.function, frame.source) for frame in error.frames] == [
        (4, "<module>", "f(0)"),
        (2, "f", "return 1 / x"),
    ]


def test_head_and_tail_are_kept_and_the_rest_can_be_paged_in(sandbox: Sandbox) -> None:
    result = sandbox.exec("seq", "100000", max_output_bytes=1000)
    whole = "".join(f"{i}\n" for i in range(1, 100001))
    assert result.truncated is not None
    cut = result.truncated["stdout"]
    assert result.stdout == whole[: cut["from"]] + whole[cut["to"] :]
    assert cut["omitted_bytes"] == cut["to"] - cut["from"] == len(whole) - 1000
    process = sandbox.process(result.id)
    middle = process.output(offset=cut["from"], limit=cut["omitted_bytes"])
    assert middle.decode() == whole[cut["from"] : cut["to"]]


def test_the_same_exec_id_runs_once(sandbox: Sandbox, http: httpx.Client, path: str) -> None:
    body = {"shell": "date +%N >> /tmp/once; cat /tmp/once", "exec_id": "exe" + "q" * 26}
    first, second = (http.post(f"{path}/exec", json=body).json() for _ in range(2))
    assert first == second
    assert len(first["stdout"].split()) == 1


def test_a_fork_bomb_stays_inside_and_the_sandbox_answers(http: httpx.Client) -> None:
    made = http.post("/v1/sandboxes", json={"resources": {"pids": 40, "memory_mb": 512, "disk_mb": 64}}).json()
    path = f"/v1/sandboxes/{made['id']}"
    bomb = http.post(
        f"{path}/exec", json={"argv": ["bash", "-c", "b() { b | b & }; b; sleep 1"], "timeout_s": 5}
    ).json()
    assert bomb["state"] == "exited"
    assert http.get(path).json()["state"] == "running"
    answer = http.post(f"{path}/exec", json={"argv": ["true"], "user": "root", "timeout_s": 20}).json()
    assert answer["outcome"]["exit_code"] == 0
    assert http.delete(path).json()["termination"]["reason"] == "requested"


def test_many_at_once(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda i: sandbox.exec(shell=f"echo {i}; exit {i % 7}"), range(64)))
    assert [(r.stdout, r.exit_code) for r in results] == [(f"{i}\n", i % 7) for i in range(64)]


def test_environment_and_arguments_of_every_size(sandbox: Sandbox, http: httpx.Client, path: str) -> None:
    long = "x" * 100_000
    assert sandbox.exec("python3", "-c", "import sys; print(len(sys.argv[1]))", long).stdout == "100000\n"
    answer = http.post(f"{path}/exec", json={"argv": ["true", "y" * 131073]})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    answer = http.post(f"{path}/exec", json={"argv": ["true", *[long] * 25]})
    assert answer.status_code == 422
    assert answer.json()["hint"]
