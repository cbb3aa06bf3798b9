import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from nursery import Nursery
from server import Server

import isobox


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that need no other."""
    running = Server(tmp_path_factory.mktemp("server") / "state").start()
    yield running
    running.end()
    lines = running.log().splitlines()
    errors = [n for n, line in enumerate(lines) if '"level": "error"' in line or "Traceback" in line]
    assert not errors, "\n".join(lines[errors[0] : errors[0] + 60])


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where servers come from that are killed and started again."""
    found = Nursery()
    yield found
    found.close()


@pytest.fixture
def own_server(tmp_path: Path, nursery: Nursery) -> Iterator[Server]:
    """A server that a test may kill."""
    running = Server(tmp_path / "state", nursery)
    yield running
    running.end()


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def operator(server: Server) -> Iterator[httpx.Client]:
    with server.operator() as client:
        yield client


@pytest.fixture(scope="module")
def sandbox(server: Server) -> Iterator[isobox.Sandbox]:
    with isobox.Sandbox.create(url=server.url, api_key=server.key, timeout_s=600) as found:
        yield found


@pytest.fixture
def path(sandbox: isobox.Sandbox) -> str:
    return f"/v1/sandboxes/{sandbox.id}"
