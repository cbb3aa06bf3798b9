"""What a GPU is: values that `reader.py` finds. Pure."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a MIG slice of one (parent is the whole one's UUID then).

    minor numbers its node /dev/nvidiaMINOR; memory in MiB; numa is -1 where nobody says; links are UUIDs of those that
    NVLink connects it with.
    """

    uuid: str
    index: int
    minor: int
    name: str
    kind: str
    memory_mb: int
    pci: str
    numa: int = -1
    links: frozenset[str] = frozenset()
    parent: str | None = None
    slices: int = 0
    """Of a whole one: how many slices it is cut into."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How a device does: MiB, percent, degrees Celsius, watts; None where the driver does not say."""

    memory_used_mb: int | None = None
    utilization: int | None = None
    temperature: int | None = None
    power_w: float | None = None
    processes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """All devices at one moment. sick says of UUIDs what is wrong with them; problem why there is no device at all."""

    driver: str = ""
    devices: tuple[Device, ...] = ()
    samples: dict[str, Sample] = field(default_factory=dict)
    sick: dict[str, str] = field(default_factory=dict)
    problem: str = ""
