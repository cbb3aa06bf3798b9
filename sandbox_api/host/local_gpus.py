"""This machine's GPUs: looked at every so often, made part of sandboxes, overwritten between tenants."""

import asyncio
import os
import stat
import sys
from pathlib import Path
from typing import Final

import structlog

from gpu import driver, libraries, outfit
from gpu.device import Device, Inventory
from gpu.errors import GpuUnusable
from gpu.reader import Reader
from isolation import runsc
from isolation.channel.link import StartFailed
from isolation.programs import run_as_root
from isolation.runsc import Runsc
from isolation.sandbox import Sandbox
from isolation.spec import BARE, Bind, Equipment, Node

_log = structlog.get_logger(__name__)
_SCRUB_S: Final = 300.0
_LIST_S: Final = 20.0


class LocalGpus:
    """See `sandbox_api.host.interface.Gpus`."""

    def __init__(
        self, found: Runsc, folder: Path, *, enabled: bool, abi: str, library_folder: Path | None, scrub: bool
    ) -> None:
        self._runsc = found
        self._folder = folder
        self._enabled = enabled
        self._abi = abi
        self._library_folder = library_folder
        self._scrub = scrub
        self._reader = Reader(library_folder)
        self._reading = asyncio.Lock()
        self._supported: list[str] | None = None
        self.inventory = Inventory(problem="the operator switched GPUs off (ISOBOX_GPUS=0)")

    async def look(self) -> Inventory:
        if self._enabled:
            async with self._reading:
                self.inventory = await asyncio.to_thread(self._reader.read)
        return self.inventory

    async def forgive(self, uuid: str) -> None:
        async with self._reading:
            self._reader.forgive(uuid)

    def close(self) -> None:
        """Let go of the driver's library."""
        self._reader.close()

    async def equip(self, devices: tuple[Device, ...]) -> Equipment:
        """What a sandbox gets with these; GpuUnusable."""
        if not devices:
            return BARE
        version = driver.choose_abi(self.inventory.driver, await self._abis(), self._abi)
        return await asyncio.to_thread(self._equip, devices, version)

    def _equip(self, devices: tuple[Device, ...], version: str) -> Equipment:
        uvm = _character_device(outfit.UVM)
        wanted = outfit.nodes(devices, os.major(uvm))
        for each in wanted:
            if _character_device(each.path) != os.makedev(each.major, each.minor):
                raise GpuUnusable(f"{each.path} is another device", hint="see nvidia-modprobe(1)")
        found = libraries.find(self._library_folder)
        folder = libraries.gather(found, self._folder / f"libraries-{self.inventory.driver}")
        return Equipment(
            nodes=tuple(Node(each.path, each.major, each.minor) for each in wanted),
            binds=(Bind(str(folder), outfit.LIBRARIES),),
            flags=("--nvproxy", f"--nvproxy-driver-version={version}"),
        )

    async def _abis(self) -> list[str]:
        if self._supported is None:
            argv = [str(self._runsc.path), "nvproxy", "list-supported-drivers"]
            status, output = await runsc.run(argv, timeout=_LIST_S)
            self._supported = driver.parse_supported(output) if status == 0 else []
        return self._supported

    async def check(self) -> str:
        """For doctor: what works here; GpuUnusable with what does not."""
        inventory = await self.look()
        if inventory.problem:
            return f"none ({inventory.problem})"
        whole = tuple(each for each in inventory.devices if each.parent is None and not each.slices)
        await self.equip(whole)
        return f"{len(whole)} ({', '.join(sorted({each.kind for each in whole}))}), driver {inventory.driver}"

    async def clean(self, device: Device) -> None:
        """See that nobody uses it, and overwrite its memory; GpuUnusable where that cannot be."""
        sample = (await self.look()).samples.get(device.uuid)
        if sample is None:
            raise GpuUnusable("it is gone")
        if sample.processes:
            raise GpuUnusable(f"processes still use it: {', '.join(map(str, sample.processes))}")
        if not self._scrub:
            return
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gpu.scrub", device.uuid),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
            env=self._environment(),
        )
        try:
            async with asyncio.timeout(_SCRUB_S):
                output, _ = await process.communicate()
        except BaseException as error:
            process.kill()
            await process.wait()
            if isinstance(error, TimeoutError):
                raise GpuUnusable(f"its memory was not overwritten within {_SCRUB_S:g} s") from error
            raise
        if process.returncode:
            words = output.decode(errors="replace").strip().splitlines()[-1:]
            raise GpuUnusable(f"its memory could not be overwritten: {' '.join(words)[:300]}")

    def _environment(self) -> dict[str, str]:
        if self._library_folder is None:
            return dict(os.environ)
        known = os.environ.get("LD_LIBRARY_PATH")
        return os.environ | {"LD_LIBRARY_PATH": f"{self._library_folder}{f':{known}' if known else ''}"}


async def furnish(sandbox: Sandbox) -> None:
    """Let the sandbox's dynamic loader find the driver's libraries, if it has a cache of where libraries lie."""
    configure = f"mkdir -p /etc/ld.so.conf.d && echo {outfit.LIBRARIES} > /etc/ld.so.conf.d/isobox-gpu.conf"
    try:
        status = await run_as_root(sandbox.link, ["/bin/sh", "-c", f"{configure} && exec ldconfig"])
    except StartFailed as error:
        _log.info("no shell to run ldconfig by", sandbox=sandbox.id, error=str(error))
        return
    if status:  # an image without ldconfig: LD_LIBRARY_PATH says it too
        _log.info("ldconfig failed", sandbox=sandbox.id, status=status)


def _character_device(path: str) -> int:
    try:
        facts = os.stat(path)
    except OSError as error:
        raise GpuUnusable(
            f"there is no {path}: {error.strerror}", hint="load the driver: nvidia-modprobe -u -c 0"
        ) from error
    if not stat.S_ISCHR(facts.st_mode):
        raise GpuUnusable(f"{path} is no device", hint="see nvidia-modprobe(1)")
    return facts.st_rdev
