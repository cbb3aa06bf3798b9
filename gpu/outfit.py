"""What a sandbox gets with its GPUs: device nodes, the driver's libraries, a few variables. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gpu.device import Device
from gpu.errors import GpuUnusable

LIBRARIES: Final = "/usr/local/nvidia/lib64"
"""Where the driver's libraries lie inside."""

NVIDIA_MAJOR: Final = 195
CONTROL: Final = "/dev/nvidiactl"
UVM: Final = "/dev/nvidia-uvm"


@dataclass(frozen=True, slots=True)
class Node:
    """A character device; the same number inside as here, but for what runsc renumbers itself."""

    path: str
    major: int
    minor: int


def nodes(devices: Sequence[Device], uvm_major: int) -> tuple[Node, ...]:
    """Those of these devices and what all share; no other GPU's. GpuUnusable for a slice."""
    for each in devices:
        if each.parent is not None:
            raise GpuUnusable(
                f"{each.kind} is a MIG slice: runsc shows whole GPUs alone, so its neighbours could be reached",
                hint="ask for a whole GPU; the operator can switch MIG off (nvidia-smi -mig 0)",
            )
    shared = (Node(CONTROL, NVIDIA_MAJOR, 255), Node(UVM, uvm_major, 0))
    return (*shared, *(Node(f"/dev/nvidia{each.minor}", NVIDIA_MAJOR, each.minor) for each in devices))


def environment(uuids: Sequence[str]) -> dict[str, str]:
    """Defaults of what runs inside."""
    shown = ",".join(uuids)
    return {"NVIDIA_VISIBLE_DEVICES": shown, "CUDA_VISIBLE_DEVICES": shown, "LD_LIBRARY_PATH": LIBRARIES}
