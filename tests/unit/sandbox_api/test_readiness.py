import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common import owners
from isolation.errors import RunscError
from isolation.sandbox import Attempts
from sandbox_api.host import readiness
from sandbox_api.host.readiness import Readiness


class Machine:
    """As much of one as readiness looks at, with a probe that fails as often as is wanted."""

    def __init__(self, folder: Path) -> None:
        self.runsc = SimpleNamespace(path=folder / "runsc")
        self.runsc.path.touch(mode=0o755)
        self.attempts = Attempts()
        self.network: str | None = None
        self.failures = 0
        self.probes = 0
        self.state = folder / "state"
        self.state.mkdir()
        owner = owners.identify(self.state, folder=folder / "owners")
        this: Any = self
        self.readiness = Readiness(this, self.state, owner, lambda: self.network, self.probe)

    async def probe(self) -> None:
        self.probes += 1
        if self.failures:
            self.failures -= 1
            raise RunscError("runsc create failed (1)")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(readiness, "_TRY_AFTER_S", 0.0)
    return Machine(tmp_path)


def test_each_thing_that_prevents_a_creation_is_told(machine: Machine) -> None:
    assert machine.readiness.problems() == []
    machine.runsc.path.unlink()
    machine.network = "the gateway is down: tcp 198.19.0.1:4443 is taken by x (pid 7)"
    machine.attempts.note(RunscError("no"))
    (machine.state / owners.IDENTITY).unlink()
    found = "\n".join(machine.readiness.problems())
    for part in ("runsc is gone", "taken by x (pid 7)", "could not be created: no", "was removed or replaced"):
        assert part in found


def test_a_full_disk_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_free", lambda _: 4096)
    assert machine.readiness.problems() == [f"the disk of {machine.state} is full"]


def test_a_failure_that_a_tenant_caused_is_not_the_machines(machine: Machine) -> None:
    async def run() -> None:
        task = asyncio.ensure_future(machine.readiness.run())  # noqa: TID251
        machine.attempts.doubted.set()  # an image of the tenant's that does not start, say
        while machine.attempts.doubted.is_set():
            assert machine.readiness.problems() == []
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())
    assert machine.probes == 1


def test_it_is_not_ready_until_a_creation_has_succeeded(machine: Machine) -> None:
    async def run() -> list[bool]:
        machine.failures, seen = 3, []
        task = asyncio.ensure_future(machine.readiness.run())  # noqa: TID251
        machine.attempts.note(RunscError("no"))
        while machine.attempts.doubted.is_set():
            seen.append(bool(machine.readiness.problems()))
            await asyncio.sleep(0)
        task.cancel()
        return seen

    assert all(asyncio.run(run()))
    assert machine.readiness.problems() == []
    assert machine.probes == 4
