"""A machine's GPUs at the wire: NVML and libcuda compiled from C, device nodes by mknod. All above them is real."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).parent
MIB_80 = 81559
UVM_MAJOR = 511


@dataclass(frozen=True)
class Fake:
    """A line of what the fake library reads."""

    minor: int
    name: str = "NVIDIA H100 80GB HBM3"
    memory_mb: int = MIB_80
    numa: int = 0
    links: str = "-"
    slices: int = 0
    errors: int = 0
    pid: int = 0

    @property
    def uuid(self) -> str:
        return f"GPU-{self.minor:08x}"

    def line(self) -> str:
        numbers = f"{self.minor} {self.memory_mb} {self.numa} {self.links} {self.slices} {self.errors} {self.pid}"
        return f"gpu {self.uuid} {numbers} {self.name}\n"


def build(folder: Path) -> Path:
    """The libraries, in a folder."""
    for source, target in (("nvml.c", "libnvidia-ml.so.1"), ("cuda.c", "libcuda.so.1")):
        command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{target}"]
        subprocess.run([*command, str(HERE / source), "-o", str(folder / target)], check=True, timeout=120)
    return folder


class FakeMachine:
    """GPUs that a test can change while a server looks at them."""

    def __init__(self, folder: Path, libraries: Path, driver: str) -> None:
        self._driver = driver
        self._told = folder / "gpus"
        self.scrubbed_log = folder / "scrubbed"
        self.environment = {
            "FAKE_GPUS": str(self._told),
            "FAKE_CUDA_LOG": str(self.scrubbed_log),
            "ISOBOX_GPU_LIBRARIES": str(libraries),
            "ISOBOX_GPU_LOOK_S": "0.1",
        }
        self.gpus: list[Fake] = []
        self.xids: list[tuple[int, str]] = []

    def set(self, gpus: Sequence[Fake], *, driver: str | None = None) -> None:
        """From now on these are there."""
        self.gpus = list(gpus)
        lines = [
            f"driver {driver or self._driver}\n",
            *(each.line() for each in gpus),
            *(f"xid {n} {uuid}\n" for n, uuid in self.xids),
        ]
        partial = self._told.with_suffix(".new")
        partial.write_text("".join(lines))
        partial.replace(self._told)

    def change(self, minor: int, **fields: object) -> None:
        """One of them is otherwise now."""
        self.set([replace(each, **fields) if each.minor == minor else each for each in self.gpus])  # type: ignore[arg-type]

    def xid(self, number: int, minor: int) -> None:
        """The driver reports an Xid."""
        self.xids.append((number, f"GPU-{minor:08x}"))
        self.set(self.gpus)

    def scrubbed(self) -> list[str]:
        """UUIDs of devices that were overwritten, in order."""
        if not self.scrubbed_log.exists():
            return []
        return [line.split()[0] for line in self.scrubbed_log.read_text().splitlines()]


@contextmanager
def device_nodes(minors: Sequence[int]) -> Iterator[None]:
    """The driver's nodes in /dev, as nvidia-modprobe makes them."""
    wanted = {"/dev/nvidiactl": (195, 255), "/dev/nvidia-uvm": (UVM_MAJOR, 0)}
    wanted |= {f"/dev/nvidia{minor}": (195, minor) for minor in minors}
    made = []
    try:
        for path, (major, minor) in wanted.items():
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            made.append(path)
        yield
    finally:
        for path in made:
            os.unlink(path)
