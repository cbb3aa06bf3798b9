"""schemathesis reads our OpenAPI document and asks whatever it allows, and what it does not."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isobox import Sandbox

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from server import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "state", ISOBOX_MAX_SANDBOXES="3").start()
    yield running
    running.end()


@pytest.mark.timeout(300)
def test_no_request_makes_the_server_fail(server: Server) -> None:
    with Sandbox.create(url=server.url, api_key=server.key, timeout_s=280) as sandbox:
        exec_id = sandbox.exec("seq", "10").id
        (server.state / "schemathesis.toml").write_text(
            f'[parameters]\n"path.sandbox_id" = "{sandbox.id}"\n"path.exec_id" = "{exec_id}"\n"query.wait_s" = 0\n'
        )
        done = ask(server)
    assert done.returncode == 0, done.stdout[:5000] + done.stderr[-2000:]
    assert "Traceback" not in server.log()


def ask(server: Server) -> "subprocess.CompletedProcess[str]":
    # One worker: with two, Python 3.11 sometimes fails in ast.parse, which two threads share.
    return subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json",
            "--header", f"Authorization: Bearer {server.key}", "--checks", "not_a_server_error,response_schema_conformance",
            "--max-examples", "12", "--seed", "1", "--request-timeout", "30", "--workers", "1", "--no-color",
            "--exclude-path-regex", "stream|events|pause|wait",
            "--exclude-operation-id", "terminate_v1_sandboxes__sandbox_id__delete", "--phases", "examples,coverage,fuzzing", "--generation-database", "none",
        ],
        capture_output=True, text=True, timeout=280, cwd=server.state,
    )  # fmt: skip
