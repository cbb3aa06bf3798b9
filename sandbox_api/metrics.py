"""What /metrics tells, in Prometheus' own types and with a registry of its own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sandbox_api.host.interface import Device, Sample, ShelfFacts

if TYPE_CHECKING:
    from sandbox_api.services.functions.running import FunctionFacts

_GPU_GAUGES = {
    "used": "Whether a sandbox has the GPU.",
    "memory_used_mb": "Memory in use, MiB.",
    "utilization": "Percent of the time that something ran on it.",
    "temperature": "Degrees Celsius.",
    "power_w": "Watts.",
}
_FUNCTION_GAUGES = {
    "containers": "Containers of a function, by state.",
    "inputs": "Inputs that are not over, by state.",
    "starts": "Containers started since the server's start, by outcome.",
    "ended": "Inputs over since the server's start, by outcome.",
}
_SHELF = ["image", "memory_mb", "kind"]
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sandboxes = Gauge("isobox_sandboxes", "Sandboxes that live.", registry=self.registry)
        self.created = Counter("isobox_sandboxes_created", "Sandboxes created.", registry=self.registry)
        self.ended = Counter("isobox_sandboxes_ended", "Sandboxes ended.", ["reason"], registry=self.registry)
        self.execs = Counter("isobox_execs", "Execs started.", registry=self.registry)
        self.create_seconds = Histogram(
            "isobox_create_seconds", "Time to create a sandbox.", buckets=_BUCKETS, registry=self.registry
        )
        self.exec_seconds = Histogram(
            "isobox_exec_seconds", "Run time of execs.", buckets=_BUCKETS, registry=self.registry
        )
        self.requests = Counter("isobox_http_requests", "Answers given.", ["status"], registry=self.registry)

        self.pool_ready = Gauge("isobox_pool_ready", "Sandboxes that wait.", _SHELF, registry=self.registry)
        self.pool_age = Gauge("isobox_pool_oldest_seconds", "Age of the oldest.", _SHELF, registry=self.registry)
        self.pool_claims = Gauge(
            "isobox_pool_claims",
            "Claims since the start, by whether one was ready.",
            [*_SHELF, "found"],
            registry=self.registry,
        )

        self.turn_largest = Gauge(
            "isobox_turn_largest_bytes",
            "The most of long work that one turn of the event loop has done, as a size (common/turns.py).",
            registry=self.registry,
        )
        self.gateway_starts = Gauge(
            "isobox_gateway_starts", "Gateways that this server had to start.", registry=self.registry
        )
        self.egress = Counter(
            "isobox_egress_decisions", "Decisions of policies.", ["event", "verdict"], registry=self.registry
        )

        self.functions = {
            name: Gauge(f"isobox_function_{name}", text, ["id", "app", "function", "state"], registry=self.registry)
            for name, text in _FUNCTION_GAUGES.items()
        }
        self.gpus = {
            name: Gauge(f"isobox_gpu_{name}", text, ["uuid", "kind", "sandbox"], registry=self.registry)
            for name, text in _GPU_GAUGES.items()
        }

    def tell_pool(self, shelves: list[ShelfFacts]) -> None:
        """Bring the pool's gauges up to date; shelves that are gone disappear."""
        for gauge in (self.pool_ready, self.pool_age, self.pool_claims):
            gauge.clear()
        for each in shelves:
            shape = each.shape
            labels = (shape.image.stem[:12], str(shape.memory_mb), shape.kind)
            self.pool_ready.labels(*labels).set(each.ready)
            self.pool_age.labels(*labels).set(each.age_s)
            self.pool_claims.labels(*labels, "hit").set(each.hits)
            self.pool_claims.labels(*labels, "miss").set(each.misses)

    def tell_gpus(self, devices: list[tuple[Device, Sample, str]]) -> None:
        """Bring the GPUs' gauges up to date: each device, how it does, whose it is."""
        for gauge in self.gpus.values():
            gauge.clear()
        for device, sample, sandbox in devices:
            values = {
                "used": float(bool(sandbox)),
                "memory_used_mb": sample.memory_used_mb,
                "utilization": sample.utilization,
                "temperature": sample.temperature,
                "power_w": sample.power_w,
            }
            for name, value in values.items():
                if value is not None:
                    self.gpus[name].labels(device.uuid, device.kind, sandbox).set(value)

    def tell_functions(self, functions: "Sequence[FunctionFacts]") -> None:
        """Bring the functions' gauges up to date; those that do nothing disappear."""
        for gauge in self.functions.values():
            gauge.clear()
        for each in functions:
            labels = (each.id, each.app, each.name)
            for state, count in (("ready", each.ready), ("starting", each.starting)):
                self.functions["containers"].labels(*labels, state).set(count)
            for state, count in (("queued", each.queued), ("running", each.running)):
                self.functions["inputs"].labels(*labels, state).set(count)
            for name, counts in (("starts", each.starts), ("ended", each.ends)):
                for state, count in counts.items():
                    self.functions[name].labels(*labels, state).set(count)

    def text(self) -> bytes:
        """In the exposition format."""
        return generate_latest(self.registry)
