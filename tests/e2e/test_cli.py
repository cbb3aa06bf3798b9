import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from server import Server, running


@pytest.fixture
def isobox(server: Server) -> object:
    def run(*arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
        environment = server.environment | {"ISOBOX_URL": server.url, "ISOBOX_API_KEY": server.key}
        command = [sys.executable, "-m", "isobox.cli.main", *arguments]
        given = {"capture_output": True, "text": True, "timeout": 60, "env": environment, "stdin": subprocess.DEVNULL}
        return subprocess.run(command, **(given | options))  # type: ignore[call-overload, no-any-return]

    return run


def test_run_streams_and_its_exit_code_is_the_programs(isobox, http: httpx.Client) -> None:  # type: ignore[no-untyped-def]
    before = running(http)
    done = isobox("run", "--", "python3", "-c", "print(1)")
    assert (done.stdout, done.returncode) == ("1\n", 0)
    done = isobox("run", "--", "sh", "-c", "cat; echo err >&2; exit 7", stdin=None, input="typed\n")
    assert (done.stdout, done.stderr, done.returncode) == ("typed\n", "err\n", 7)
    done = isobox("run", "--", "no-such-program")
    assert done.returncode == 127
    assert "no-such-program: not found" in done.stderr
    assert running(http) <= before


def test_output_comes_while_it_runs(isobox, server: Server) -> None:  # type: ignore[no-untyped-def]
    environment = server.environment | {"ISOBOX_URL": server.url, "ISOBOX_API_KEY": server.key}
    command = [sys.executable, "-m", "isobox.cli.main", "run", "--", "sh", "-c", "echo first; sleep 5; echo last"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        began = time.monotonic()
        assert process.stdout.readline() == b"first\n"
        first = time.monotonic() - began
        assert process.stdout.read() == b"last\n"
        assert time.monotonic() - began - first > 3


def test_a_sandbox_by_hand(isobox, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    id_ = isobox("create", "--name", "hand").stdout.strip()
    assert id_ in isobox("ps").stdout
    assert isobox("exec", id_, "--", "sh", "-c", "echo $0 works > f; cat f").stdout == "sh works\n"
    assert isobox("files", "cat", id_, "/home/user/f").stdout == "sh works\n"
    assert " f\n" in isobox("files", "ls", id_, "/home/user").stdout
    (tmp_path / "up").write_text("up")
    assert isobox("files", "put", id_, str(tmp_path / "up"), "/tmp/up").returncode == 0
    assert isobox("files", "get", id_, "/tmp/up", str(tmp_path / "down")).returncode == 0
    assert (tmp_path / "down").read_text() == "up"
    assert "sh works" in isobox("logs", id_).stdout
    assert isobox("kill", id_).stdout == f"{id_}\n"
    assert id_ not in isobox("ps").stdout
    assert "terminated (requested)" in isobox("ps", "--all").stdout
    done = isobox("exec", id_, "--", "true")
    assert done.returncode == 1
    assert "terminated" in done.stderr


def test_mistakes_are_a_line_not_a_stack(isobox) -> None:  # type: ignore[no-untyped-def]
    for arguments in (
        ["exec", "sbxnope", "--", "true"],
        ["logs", "sbxnope"],
        ["run", "--image", "nope", "--", "true"],
        ["run"],
    ):
        done = isobox(*arguments)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert done.stderr.strip()
    done = isobox("ps", env={"ISOBOX_URL": "http://127.0.0.1:1"})
    assert "cannot reach the isobox server" in done.stderr
    done = isobox("ps", env={"ISOBOX_URL": "127.0.0.1:1"})
    assert "ISOBOX_URL is written http://HOST:PORT" in done.stderr


def test_an_option_in_the_wrong_place_is_told(isobox) -> None:  # type: ignore[no-untyped-def]
    done = isobox("exec", "sbxnope", "--user", "root", "--", "id")
    assert (done.returncode, "options stand before" in done.stderr) == (2, True)
    for arguments in (["run", "--nosuch", "--", "true"], ["exec", "--nosuch", "sbxnope", "--", "true"]):
        done = isobox(*arguments)
        assert (done.returncode, "--nosuch is no option here" in done.stderr) == (2, True)


def test_a_commands_own_dashes_stay(isobox) -> None:  # type: ignore[no-untyped-def]
    id_ = isobox("create").stdout.strip()
    assert isobox("exec", id_, "--", "echo", "a", "--", "b").stdout == "a -- b\n"
    isobox("kill", id_)


def test_what_the_policy_refused_is_told_when_the_command_failed(isobox) -> None:  # type: ignore[no-untyped-def]
    curl = "curl -s https://pypi.example.org/"
    done = isobox("run", "--", "sh", "-c", f"{curl}; exit 3")
    assert done.returncode == 3
    assert 'to allow it add {"host": "pypi.example.org"}' in done.stderr
    done = isobox("run", "--", "sh", "-c", f"{curl}; true")
    assert (done.returncode, done.stderr) == (0, "")


def test_local_files_are_named_as_they_were_typed(isobox, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    id_ = isobox("create").stdout.strip()
    absent = str(tmp_path / "absent")
    for arguments in (["files", "put", id_, absent, "/tmp/x"], ["files", "get", id_, "/etc/passwd", f"{absent}/x"]):
        done = isobox(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert f"isobox: {absent}" in done.stderr
        assert "No such file or directory" in done.stderr
    assert isobox("files", "get", id_, "/etc/passwd", str(tmp_path)).returncode == 0
    assert "root:" in (tmp_path / "passwd").read_text()
    isobox("kill", id_)


def test_doctor_finds_this_machine_fit(isobox) -> None:  # type: ignore[no-untyped-def]
    done = isobox("doctor")
    assert done.returncode == 0, done.stdout
    assert "runsc" in done.stdout
