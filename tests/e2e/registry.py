"""A real registry on loopback: docker-registry, as the distribution has it."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

CONFIG = """
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
{auth}
"""
AUTH = "auth: {{htpasswd: {{realm: test, path: {path}}}}}"
# "user" with the password "secret", by bcrypt
HTPASSWD = "user:$2b$05$ctoqJgiWBBsf4uXnqnV12e0CZuRB37371ZbpAG8Fa7zixdUjCPEF6\n"


@contextmanager
def registry(program: Path, folder: Path, port: int, *, password: bool = False) -> Iterator[str]:
    """Runs one until the end of the block: its HOST:PORT."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    auth = ""
    if password:
        (folder / "htpasswd").write_text(HTPASSWD)
        auth = AUTH.format(path=folder / "htpasswd")
    (folder / "config.yml").write_text(CONFIG.format(root=folder / "data", port=port, auth=auth))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", folder / "config.yml"], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 15
            while True:
                try:
                    httpx.get(f"http://127.0.0.1:{port}/v2/")
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline, (folder / "log").read_text()
                    assert process.poll() is None, (folder / "log").read_text()
                    time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)
