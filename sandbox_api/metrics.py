"""What /metrics tells, in Prometheus' own types and with a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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

    def text(self) -> bytes:
        """In the exposition format."""
        return generate_latest(self.registry)
