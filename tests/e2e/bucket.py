"""A real S3 server on loopback: moto's, as a process that can be stopped and continued."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
from server import until

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


class S3Server:
    """moto's S3 server, a process that can be stopped and continued."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.environment = KEYS | {"AWS_ENDPOINT_URL": self.url}
        program = Path(sys.executable).with_name("moto_server")
        self.process = subprocess.Popen(
            [program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._answers)
        httpx.put(f"{self.url}/images").raise_for_status()

    def _answers(self) -> bool:
        try:
            return httpx.get(self.url).status_code < 500
        except httpx.TransportError:
            return False

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(10)
