"""What a function's containers are like, as it is written and as the API takes it. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from isobox.calls import Policy, without_none
from isobox.functions.calls import Trust
from isobox.functions.schedules import Cron, Period
from isobox.gpus import GpuAsk
from isobox.image import Image
from isobox.secret import Secret
from isobox.volume import Volumes, as_asked


class Options(TypedDict, total=False):
    """Cores, MiB, seconds.

    retries: how often it is tried again after an exception, or {"count", "delay_s", "factor"}. trust="pickle" lets any
    value come back, and code of the container's with it: only for what you trust (docs/functions.md).
    restricted: it may not call other functions, nor use dicts and queues; for what runs a stranger's code.
    """

    image: str | Image
    cpu: float
    memory: int
    disk: int
    gpu: GpuAsk
    env: Mapping[str, str]
    user: str
    network: Policy
    volumes: Volumes
    secrets: Sequence[Secret | str]
    timeout: float
    retries: int | Mapping[str, float]
    concurrency: int
    min_containers: int
    max_containers: int
    buffer_containers: int
    scaledown_window: float
    trust: Trust
    restricted: bool
    schedule: Cron | Period


_SAME = (
    "user",
    "network",
    "concurrency",
    "min_containers",
    "max_containers",
    "buffer_containers",
    "trust",
    "restricted",
)


def fields(options: Options) -> dict[str, Any]:
    """As the API takes them; the image is left out."""
    resources = {"cpu": options.get("cpu"), "memory_mb": options.get("memory"), "disk_mb": options.get("disk")}
    gpu, env, retries = options.get("gpu"), options.get("env"), options.get("retries")
    asked = without_none(resources) | (
        {} if gpu is None else {"gpu": {"kind": gpu} if isinstance(gpu, str) else dict(gpu)}
    )
    found = {
        **{name: options.get(name) for name in _SAME},
        "resources": asked or None,
        "env": None if env is None else dict(env),
        "timeout_s": options.get("timeout"),
        "scaledown_s": options.get("scaledown_window"),
        "retries": None if retries is None else {"count": retries} if isinstance(retries, int) else dict(retries),
    }
    if (schedule := options.get("schedule")) is not None:
        found["schedule"] = schedule.as_asked()
    if secrets := options.get("secrets"):
        named = [Secret.from_name(each) if isinstance(each, str) else each for each in secrets]
        found["secrets"] = {each.env: each.name for each in named}
    return without_none(found) | as_asked(options.get("volumes"))
