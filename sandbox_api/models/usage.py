"""Usage over the wire."""

from datetime import datetime

from pydantic import BaseModel

from sandbox_api.models.common import Page


class Usage(BaseModel):
    """What a sandbox used: seconds that it ran, CPU seconds, GPU seconds by kind (two GPUs for a second are two)."""

    sandbox: str
    name: str | None
    labels: dict[str, str]
    started_at: datetime
    ended_at: datetime | None
    seconds: float
    cpu_s: float
    gpu_s: dict[str, float]


class FunctionUsage(BaseModel):
    """What the containers of a function used."""

    function: str
    name: str | None
    containers: int
    seconds: float
    cpu_s: float
    gpu_s: dict[str, float]


class UsagePage(Page):
    """Usage, what began last first, and its sums: of all, and of each function's containers."""

    usage: list[Usage]
    total_cpu_s: float
    total_gpu_s: dict[str, float]
    functions: list[FunctionUsage]
