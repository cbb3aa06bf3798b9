"""The service as a real process, the way an operator starts it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
from nursery import Forked, Nursery

COMMAND = [sys.executable, "-m", "isobox.cli.main", "serve"]


class Server:
    def __init__(self, state: Path, nursery: Nursery | None = None, **environment: str) -> None:
        """With a nursery it is forked off that instead of started: much faster."""
        self.state = state
        self._nursery = nursery
        self.environment = os.environ | {"ISOBOX_STATE": str(state)} | environment
        self.process: subprocess.Popen[str] | Forked | None = None
        self.listen = "127.0.0.1:0"
        self.url = ""

    def start(self) -> "Server":
        with self.state.with_suffix(".log").open("a") as log:
            arguments = ["--state", str(self.state), "--listen", self.listen]
            if self._nursery is not None:
                self.process = self._nursery.start(["serve", *arguments], self.environment, log)
            else:
                self.process = subprocess.Popen(
                    [*COMMAND, *arguments],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=self.environment,
                    start_new_session=True,  # a Ctrl-C is for whoever started it, who ends what runs in it first
                )
        assert self.process.stdout is not None
        try:
            line = self.process.stdout.readline()
            assert "ready on" in line, f"{line!r}\n{self.log()}"
        except BaseException:  # a signal to us
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=30)
            raise
        self.url = line.split()[-1]
        self.listen = self.url.removeprefix("http://")
        return self

    def log(self) -> str:
        return self.state.with_suffix(".log").read_text()

    @property
    def key(self) -> str:
        return (self.state / "api-key").read_text().strip()

    @property
    def operator_key(self) -> str:
        return (self.state / "operator-key").read_text().strip()

    def operator(self) -> httpx.Client:
        """For what is the operator's alone."""
        headers = {"Authorization": f"Bearer {self.operator_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def client(self, **options: object) -> httpx.Client:
        options = {"timeout": 60, **options}
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, **options)  # type: ignore[arg-type]

    def kill(self) -> None:
        """As the kernel would under memory pressure."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._close()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=30)
        self._close()
        return code

    def _close(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None

    def end(self) -> None:
        """End all sandboxes, then the server: nothing may be left."""
        if self.process is None:
            self.start()
        with self.client() as http:
            for state in ("running", "paused", "creating"):
                for sandbox in http.get("/v1/sandboxes", params={"state": state, "limit": 500}).json()["sandboxes"]:
                    http.delete(f"/v1/sandboxes/{sandbox['id']}")
        self.stop()

    def keeper_pid(self) -> int | None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    if f"{self.state}/keeper.sock".encode() in (entry / "cmdline").read_bytes():
                        return int(entry.name)
                except OSError:
                    continue
        return None


def running(http: httpx.Client) -> set[str]:
    """Those that run now. What other tests left to a time-out may end meanwhile: nothing *new* is what to look for."""
    return {each["id"] for each in http.get("/v1/sandboxes", params={"state": "running"}).json()["sandboxes"]}


def until(condition: "object", *, timeout: float = 15.0) -> None:
    """Wait for something that comes by itself."""
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
