"""Servers for tests that need many: forked off a process that has imported everything, a tenth of the time to start.

What runs is what `isobox serve` runs, in a process of its own with the environment, the output and the signals of one that
was started. Tests that ask how a server is started start one (`server.py`).
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]


class Forked:
    """A server, with what of `subprocess.Popen` our tests use."""

    def __init__(self, nursery: "Nursery", pid: int, stdout: IO[str]) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._nursery = nursery
        self._fd = os.pidfd_open(pid)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._fd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._fd, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("isobox serve", timeout or 0.0)
            os.close(self._fd)
            self.returncode = self._nursery.reap(self.pid)
        return self.returncode


class Nursery:
    """The process that servers are forked off."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT)
        theirs.close()

    def start(self, argv: list[str], environment: dict[str, str], log: IO[str]) -> Forked:
        """Fork one off."""
        read, write = os.pipe()
        asked = json.dumps({"argv": argv, "environment": environment}).encode()
        socket.send_fds(self._socket, [asked], [write, log.fileno()])
        os.close(write)
        return Forked(self, int(self._socket.recv(64)), os.fdopen(read))

    def reap(self, pid: int) -> int:
        """How one ended, as Popen tells it."""
        self._socket.send(json.dumps({"reap": pid}).encode())
        return int(self._socket.recv(64))

    def close(self) -> None:
        self._socket.close()
        self._process.wait(10)


def _serve(asked: dict[str, object], out: int, log: int) -> None:
    """In the fork: become `isobox serve`."""
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(log, 2)
        os.closerange(3, 256)
        os.environ.clear()
        os.environ.update(asked["environment"])  # type: ignore[arg-type]
        sys.argv = ["isobox", *asked["argv"]]  # type: ignore[misc]
        from isobox.cli.main import main

        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _main() -> None:
    ours = socket.socket(fileno=int(sys.argv[1]))
    sys.path.insert(0, str(ROOT))
    import isobox.cli.server  # noqa: F401  # and with it all that a server imports

    gc.collect()
    gc.freeze()
    while True:
        raw, fds, _, _ = socket.recv_fds(ours, 1 << 20, 2)
        if not raw:
            return
        asked = json.loads(raw)
        if "reap" in asked:
            ours.send(str(os.waitstatus_to_exitcode(os.waitpid(asked["reap"], 0)[1])).encode())
            continue
        pid = os.fork()
        if pid == 0:
            _serve(asked, *fds)
        for each in fds:
            os.close(each)
        ours.send(str(pid).encode())


if __name__ == "__main__":
    _main()
