"""Our sandbox without the service: what an exec costs that nothing on the host adds to."""

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.peers import Peer
from common.ids import new_id
from isolation import cgroups, runsc
from isolation.execs import Exec, ExecSpec
from isolation.guest import build
from isolation.keeper import Keeper
from isolation.sandbox import Machine, Sandbox
from isolation.spec import DEFAULT


class Bare(Peer):
    """A sandbox whose PID 1 is asked directly, from an event loop that does nothing else."""

    name = "the channel alone"

    def __init__(self, image: Path, cache: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="isobox-bench-bare-")
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._image = image
        self._runner.run(self._begin(cache))

    async def _begin(self, cache: Path) -> None:
        place = Path(self._folder.name)
        self._keeper = Keeper(place / "keeper.sock")
        self._keeper.connect()
        (place / "run").mkdir()
        found = await runsc.find(os.environ.get("ISOBOX_RUNSC"), cache)
        self._machine = Machine(found, cgroups.detect(), self._keeper, place / "run", build.brought(cache))

    def create(self) -> None:
        """A sandbox with its PID 1 up."""
        making = Sandbox.create(self._machine, new_id("sbx"), image=self._image, resources=DEFAULT)
        self._sandbox = self._runner.run(making)

    def run(self, argv: Sequence[str]) -> None:
        """An exec, as the service would ask for it."""
        self._runner.run(self._run(list(argv)))

    async def _run(self, argv: list[str]) -> None:
        link = self._sandbox.link
        exec_ = Exec(ExecSpec(argv, "user", stdin=False), Path(self._folder.name) / new_id("exe"))
        await exec_.start(link, number=link.reserve(), timeout=10)
        end = await exec_.wait()
        exec_.log.close()
        assert (end.kind, end.code) == ("exit", 0), end

    def terminate(self) -> None:
        """SIGKILL, and no trace."""
        self._runner.run(self._sandbox.destroy())

    def close(self) -> None:
        """The keeper and the folder."""
        self._keeper.close()
        self._runner.close()
        self._folder.cleanup()
