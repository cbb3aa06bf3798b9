"""GPUs of the server: what there is, and how a sandbox asks for one.

if any(gpu.state == "free" for gpu in isobox.gpus()):
    sandbox = isobox.Sandbox.create(gpu={"kind": ["h100", "a100"], "count": 1, "wait_s": 60})
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from isobox import calls
from isobox.config import Config
from isobox.transport import Transport

GpuAsk = str | Mapping[str, Any]
"""A kind ("h100", "any"), or {"count", "kind", "memory_mb", "wait_s"}; kind may be a list, the best first."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as it stood when asked; memory in MiB; `raw` is the whole answer."""

    uuid: str
    kind: str
    memory_mb: int
    state: str
    reason: str | None
    sandbox: str | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "Gpu":
        """From the API's answer."""
        fields = ("uuid", "kind", "memory_mb", "state", "reason", "sandbox")
        return cls(**{name: raw[name] for name in fields}, raw=raw)


def gpus(*, url: str | None = None, api_key: str | None = None) -> list[Gpu]:
    """All GPUs of the server's machine; none where it has none."""
    with closing(Transport(Config.find(url, api_key))) as transport:
        return [Gpu.parse(each) for each in transport.send(calls.system("GET", "/v1/gpus"))["gpus"]]


def with_gpu(resources: Mapping[str, float] | None, gpu: GpuAsk | None) -> dict[str, Any] | None:
    """Resources as the API takes them."""
    if gpu is None:
        return None if resources is None else dict(resources)
    return {**(resources or {}), "gpu": {"kind": gpu} if isinstance(gpu, str) else dict(gpu)}
