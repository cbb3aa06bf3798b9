"""Reads what there is from NVML, the driver's own library. Blocking; for one thread at a time.

A machine without the library has no GPU, and says why. Whatever one device refuses to tell concerns that device alone.
"""

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import pynvml

from gpu.device import Device, Inventory, Sample
from gpu.kinds import kind_of

T = TypeVar("T")
_MIB: Final = 1 << 20
_PROGRAMS_OWN_FAULT: Final = frozenset({13, 31, 43, 45, 68, 109})
"""Xids that a program brings about and that hurt nobody else: what NVIDIA's own k8s-device-plugin leaves out, too."""


class Reader:
    """NVML, kept open: of the folder that the operator named, else where the dynamic loader finds it.

    What once made a device sick keeps it so until `forgive`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._library = None if folder is None else folder / "libnvidia-ml.so.1"
        self._events: Any = None
        self._watched: set[str] = set()
        self._sick: dict[str, str] = {}

    def forgive(self, uuid: str) -> None:
        """Somebody looked at it, and says that it is well."""
        self._sick.pop(uuid, None)

    def close(self) -> None:
        """Let go of the library."""
        if self._events is not None:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._events)
            self._events = None
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def read(self) -> Inventory:
        """All devices now."""
        if self._events is None:
            try:
                self._load()
                pynvml.nvmlInit()
                self._events = pynvml.nvmlEventSetCreate()
                self._watched = set()
            except pynvml.NVMLError as error:
                return Inventory(problem=f"NVML: {error}")
        try:
            return self._read()
        except pynvml.NVMLError as error:
            self.close()
            return Inventory(problem=f"NVML: {error}")

    def _load(self) -> None:
        """A library that is loaded already is the one that pynvml finds by its name."""
        if self._library is not None:
            with contextlib.suppress(OSError):  # not in that folder: wherever it is, then
                ctypes.CDLL(str(self._library))

    def _read(self) -> Inventory:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        handles: dict[str, Any] = {}
        devices: list[Device] = []
        samples: dict[str, Sample] = {}
        sick = dict(self._sick)
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                found = _whole(handle, index)
            except pynvml.NVMLError:  # it fell off the bus: whoever had it is told by its absence
                continue
            handles[found.uuid] = handle
            parts = _slices(handle, found)
            devices += [_with_slices(found, len(parts)), *parts]
            samples[found.uuid] = _sample(handle)
            self._watch(found.uuid, handle)
            if (errors := _ask(_ecc_errors, handle)) and found.uuid not in sick:
                sick[found.uuid] = f"{errors} memory errors that could not be corrected"
        self._hear(handles)
        return Inventory(driver, tuple(_linked(devices, handles)), samples, sick | self._sick)

    def _watch(self, uuid: str, handle: Any) -> None:
        if uuid not in self._watched:
            self._watched.add(uuid)
            _ask(
                lambda each: pynvml.nvmlDeviceRegisterEvents(each, pynvml.nvmlEventTypeXidCriticalError, self._events),
                handle,
            )

    def _hear(self, handles: dict[str, Any]) -> None:
        while True:
            try:
                event = pynvml.nvmlEventSetWait(self._events, 0)
            except pynvml.NVMLError:  # a time-out: there is none
                return
            if event.eventData in _PROGRAMS_OWN_FAULT:
                continue
            uuid = _ask(pynvml.nvmlDeviceGetUUID, event.device)
            for each in handles if uuid is None else [str(uuid)]:
                self._sick[each] = f"the driver reported Xid {event.eventData}"


def _ask(call: Callable[[Any], T], handle: Any) -> T | None:
    """What a device may refuse to tell."""
    try:
        return call(handle)
    except pynvml.NVMLError:
        return None


def _ecc_errors(handle: Any) -> int:
    return int(
        pynvml.nvmlDeviceGetTotalEccErrors(handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
    )


def _whole(handle: Any, index: int) -> Device:
    name = str(pynvml.nvmlDeviceGetName(handle))
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total // _MIB
    raw = pynvml.nvmlDeviceGetPciInfo(handle).busId
    pci = (raw.decode() if isinstance(raw, bytes) else str(raw)).lower()
    return Device(
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        index=index,
        minor=int(pynvml.nvmlDeviceGetMinorNumber(handle)),
        name=name,
        kind=kind_of(name, memory),
        memory_mb=memory,
        pci=pci,
        numa=_numa(handle, pci),
    )


def _numa(handle: Any, pci: str) -> int:
    node = _ask(pynvml.nvmlDeviceGetNumaNodeId, handle)
    if node is not None:
        return int(node)
    try:  # drivers before 545 do not say
        return int(Path(f"/sys/bus/pci/devices/{pci[-12:]}/numa_node").read_text())
    except (OSError, ValueError):
        return -1


def _slices(handle: Any, whole: Device) -> list[Device]:
    mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    if not mode or not mode[0]:
        return []
    found = []
    for number in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        try:
            part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            name = str(pynvml.nvmlDeviceGetName(part))
            memory = pynvml.nvmlDeviceGetMemoryInfo(part).total // _MIB
            uuid = str(pynvml.nvmlDeviceGetUUID(part))
        except pynvml.NVMLError:
            continue
        found.append(
            Device(
                uuid=uuid,
                index=whole.index,
                minor=whole.minor,
                name=name,
                kind=kind_of(name, memory),
                memory_mb=memory,
                pci=whole.pci,
                numa=whole.numa,
                parent=whole.uuid,
            )
        )
    return found


def _with_slices(whole: Device, count: int) -> Device:
    return replace(whole, slices=count) if count else whole


def _linked(devices: list[Device], handles: dict[str, Any]) -> list[Device]:
    """With those that NVLink connects each with."""

    def are_linked(a: str, b: str) -> bool:
        status = _ask(
            lambda each: pynvml.nvmlDeviceGetP2PStatus(each, handles[b], pynvml.NVML_P2P_CAPS_INDEX_NVLINK), handles[a]
        )
        return bool(status == pynvml.NVML_P2P_STATUS_OK)

    return [
        each
        if each.uuid not in handles
        else replace(each, links=frozenset(o for o in handles if o != each.uuid and are_linked(each.uuid, o)))
        for each in devices
    ]


def _sample(handle: Any) -> Sample:
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    busy = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    running = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    return Sample(
        memory_used_mb=None if memory is None else memory.used // _MIB,
        utilization=None if busy is None else int(busy.gpu),
        temperature=_ask(lambda each: int(pynvml.nvmlDeviceGetTemperature(each, pynvml.NVML_TEMPERATURE_GPU)), handle),
        power_w=None if power is None else power / 1000,
        processes=tuple(int(each.pid) for each in running),
    )
