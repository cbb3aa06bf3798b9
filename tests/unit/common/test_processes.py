import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from common import processes
from common.processes import GATEWAY, KEEPER, LAZY, Helper, recognise, sandbox_of

PYTHON = "/x/.venv/bin/python"
SANDBOX = "sbx" + "a2" * 13


def test_helpers_are_known_by_their_arguments_of_this_version_and_the_one_before() -> None:
    keeper = [PYTHON, "-I", "-S", "/x/isolation/keeper_process.py", "/var/lib/isobox/keeper.sock"]
    assert recognise(7, keeper) == Helper(7, KEEPER, "", "/var/lib/isobox")
    assert recognise(7, [*keeper, "ownx"]) == Helper(7, KEEPER, "ownx", "/var/lib/isobox")
    start = "import sys; sys.path.insert(0, '/x'); from {}.process import main; main()"
    gateway = [PYTHON, "-I", "-c", start.format("netpolicy.gateway")]
    assert recognise(8, [*gateway, json.dumps({"sockets": {}, "owner": "ownx", "state": "/s"})]) == Helper(
        8, GATEWAY, "ownx", "/s"
    )
    assert recognise(8, [*gateway, json.dumps({"sockets": {}})]) == Helper(8, GATEWAY)
    lazy = [PYTHON, "-I", "-c", start.format("fs.lazy"), json.dumps({"folder": "/s/lazy", "fd": 3})]
    assert recognise(9, lazy) == Helper(9, LAZY, "", "/s")


def test_what_only_speaks_of_helpers_is_none() -> None:
    assert recognise(1, ["vi", "/x/isolation/keeper_process.py"]) is None
    assert recognise(1, ["grep", "keeper_process.py", "/s/keeper.sock"]) is None
    assert recognise(1, ["python", "-c", "import netpolicy.gateway.process", "{}"]) is None


def test_a_sandboxs_state_directory_is_in_its_arguments() -> None:
    root = f"/var/lib/iso box/run/{SANDBOX}/runsc"
    assert sandbox_of(["runsc-sandbox", "--x=1", f"--root={root}", "boot"]) == ("/var/lib/iso box", SANDBOX)
    assert sandbox_of(["runsc", "--root", root, "create"]) == ("/var/lib/iso box", SANDBOX)
    assert sandbox_of(["runsc-sandbox", f"--log={root}", "boot"]) is None
    assert sandbox_of(["runsc-sandbox", "--root=/run/docker/runtime-runsc/moby", "boot"]) is None


@given(st.lists(st.text(max_size=40) | st.sampled_from(["-c", "/keeper_process.py", "--root", "{}", "[]", "null"])))
def test_no_arguments_are_too_odd(argv: list[str]) -> None:
    recognise(1, argv)
    sandbox_of(argv)


def test_flocks_are_found_in_the_kernels_table() -> None:
    assert processes._flock_pid("4: FLOCK  ADVISORY  WRITE 24629 fe:00:10297864 0 EOF") == 24629
    for other in (
        "2: POSIX  ADVISORY  READ 24629 fe:00:10297867 128 128",
        "4: -> FLOCK  ADVISORY  WRITE 1 fe:00:1 0 EOF",
        "",
    ):
        assert processes._flock_pid(other) == 0


def test_the_holder_of_an_address_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert f"(pid {os.getpid()})" in str(processes.holder("tcp", "127.0.0.1", port))
    assert processes.holder("tcp", "127.0.0.1", port) is None


def test_only_what_is_still_that_process_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        processes.kill(Helper(innocent.pid, KEEPER, "ownx", "/s"))
        assert innocent.poll() is None
        innocent.communicate()
    processes.kill(Helper(innocent.pid, KEEPER, "ownx", "/s"))


def test_a_helper_is_of_the_directory_that_it_logs_to(tmp_path: Path) -> None:
    (tmp_path / "keeper.log").touch()
    with (tmp_path / "keeper.log").open("w") as log:
        argv = [sys.executable, "-c", "input()"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log) as process:
            helper = Helper(process.pid, KEEPER, "", str(tmp_path))
            assert processes.anchored(helper)
            (tmp_path / "keeper.log").unlink()
            assert not processes.anchored(helper), "the directory was removed"
            (tmp_path / "keeper.log").touch()
            assert not processes.anchored(helper), "and begun anew"
            process.communicate()
    assert processes.anchored(helper), "it has ended: nobody's harm"
