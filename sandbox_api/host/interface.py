"""What the HTTP side asks of a machine: plain data in and out, no live objects, no callbacks.

In process today (local.py). Output is not part of it: it is read from the log files, whose place `log_path` tells.
Unless said otherwise every call may raise the errors of `isolation.errors`.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from isolation.cgroups import Usage as Usage
from isolation.connections import Listener as Listener
from isolation.execlog import EventType as EventType
from isolation.execs import ExecEnd as ExecEnd
from isolation.execs import ExecSpec as ExecSpec
from isolation.execs import Terminal as Terminal
from isolation.files import Entry as Entry
from isolation.pool import ShelfFacts as ShelfFacts
from isolation.sandbox import End as End
from isolation.spec import DEFAULT as DEFAULT
from isolation.spec import Resources as Resources
from netpolicy.gateway.ward import Authority as Authority
from netpolicy.gateway.ward import Credentials as Credentials
from netpolicy.network import Egress as Egress
from netpolicy.policy import CLOSED as CLOSED
from netpolicy.policy import Policy as Policy


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image that is ready."""

    id: str
    name: str
    digest: str
    size: int
    created_at: float


@dataclass(frozen=True, slots=True)
class CopyFacts:
    """A copy of a running sandbox: its name, digest and bytes, and how far each exec had come (stdout, stderr)."""

    name: str
    digest: str
    size: int
    offsets: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class TemplateExec:
    """An exec in a copy: its original's id, and what its log begins with of each stream (a frame that was cut).

    `touch` is input that it answers with some output: it is run through once before the sandbox is frozen.
    """

    id: str
    number: int
    argv: list[str]
    spec: ExecSpec
    rest: tuple[bytes, bytes]
    touch: bytes = b""


@dataclass(frozen=True, slots=True)
class Template:
    """A kept copy to make ready sandboxes of."""

    copy: CopyFacts
    image_digest: str
    resources: Resources
    execs: list[TemplateExec]


@dataclass(frozen=True, slots=True)
class KnownExec:
    """An exec of an earlier server, to go on with."""

    id: str
    number: int
    spec: ExecSpec


@dataclass(frozen=True, slots=True)
class KnownEgress:
    """A sandbox of an earlier server, and what it may do outside."""

    sandbox: str
    egress: Egress


class Files(Protocol):
    """Files in sandboxes, as the given user; `isolation.files.FileFailed` too."""

    async def stat(self, sandbox: str, path: str, user: str) -> Entry:
        """What lies at path."""

    async def list_folder(self, sandbox: str, path: str, depth: int, user: str) -> list[Entry]:
        """What a folder holds, names relative to it."""

    def read(self, sandbox: str, path: str, offset: int, length: int, user: str) -> AsyncIterator[Entry | bytes]:
        """The file's entry first, then its bytes from offset on (negative: from the end), length of them (-1: all)."""

    async def write(
        self, sandbox: str, path: str, size: int, mode: int | None, contents: AsyncIterator[bytes], user: str
    ) -> Entry:
        """Replace a file as a whole; size is -1 where it is not known beforehand."""

    async def mkdir(self, sandbox: str, path: str, parents: bool, user: str) -> Entry:
        """Make a folder."""

    async def remove(self, sandbox: str, path: str, recursive: bool, user: str) -> None:
        """Delete a file or folder."""


class Ports(Protocol):
    """What listens in sandboxes."""

    async def dial(self, sandbox: str, port: int) -> str:
        """Connect to a port: the connection's name. `isolation.connections.PortClosed` where nothing listens."""

    async def receive(self, connection: str) -> bytes:
        """What came over it; b"" at its end."""

    async def transmit(self, connection: str, data: bytes) -> bool:
        """Send; False when the other side takes no more."""

    def end_transmission(self, connection: str) -> None:
        """Nothing more will be sent."""

    async def hang_up(self, connection: str) -> None:
        """Close it."""

    async def listeners(self, sandbox: str, user: str) -> list[Listener]:
        """What listens inside."""


class Networks(Protocol):
    """What leaves sandboxes; errors of `netpolicy.errors` too."""

    async def begin(self, living: list[KnownEgress]) -> None:
        """Go on with the networks of sandboxes that an earlier server left running; nothing else is left of it."""

    async def apply(self, sandbox: str, egress: Egress) -> None:
        """These are its rules: when this returns, nothing that they refuse gets another byte through."""

    async def next_record(self) -> tuple[str, dict[str, Any]]:
        """The next record of the audit: whose, and what (`netpolicy.audit.Record.document`)."""

    def log_path(self, sandbox: str) -> Path:
        """Where a sandbox's audit lies (a log, see `isolation.execlog`)."""

    async def changed(self, sandbox: str, after: int, follower: str) -> None:
        """Wait until its audit has a record beyond after."""

    def traffic(self, sandbox: str) -> tuple[int, int]:
        """Bytes that it has sent and received."""

    async def connections(self, sandbox: str) -> int:
        """Connections to the outside that it has open."""

    @property
    def gateway_starts(self) -> int:
        """How often the gateway had to be started."""


class Execs(Protocol):
    """Processes in sandboxes."""

    def reserve(self, sandbox: str) -> int:
        """PID 1's number for the next exec."""

    async def start(self, sandbox: str, id_: str, number: int, spec: ExecSpec) -> None:
        """Start a process; `isolation.channel.link.StartFailed` too."""

    async def wait(self, sandbox: str, id_: str) -> ExecEnd:
        """Wait for its end; all its output is in the log then."""

    def append(self, sandbox: str, id_: str, type_: EventType, payload: bytes) -> None:
        """Add an event to its log."""

    def close(self, sandbox: str, id_: str) -> None:
        """Its log is complete."""

    def signal(self, sandbox: str, id_: str, signal: int, *, group: bool) -> None:
        """Send a signal."""

    def resize(self, sandbox: str, id_: str, rows: int, cols: int) -> None:
        """Resize its terminal."""

    async def write_input(self, sandbox: str, id_: str, data: bytes) -> bool:
        """Feed it; False when it takes no more."""

    def end_input(self, sandbox: str, id_: str) -> None:
        """End its input."""

    def input_offset(self, sandbox: str, id_: str) -> int:
        """Bytes of input sent so far."""

    def log_path(self, sandbox: str, id_: str) -> Path:
        """Where its log lies (see `isolation.execlog`)."""

    def remove_logs(self, sandbox: str) -> None:
        """Delete the logs of all its execs."""

    async def changed(self, sandbox: str, id_: str, after: int, follower: str) -> None:
        """Wait until its log has an event beyond after; the follower has had those up to it. At once if it ended."""

    def unfollow(self, sandbox: str, id_: str, follower: str) -> None:
        """The follower is gone."""


class Copies(Protocol):
    """Copies of sandboxes; `CheckpointRefused`, `SnapshotUnusable` and `DiskFull` of `isolation.errors` too."""

    async def take(self, id_: str, name: str, *, keep: bool) -> CopyFacts:
        """Copy a running sandbox, which goes on. With keep the copy lies on disk and outlives the server."""

    async def take_files(self, id_: str, name: str, image_digest: str) -> CopyFacts:
        """Keep a copy of what a sandbox changed in its image's files; it works on meanwhile."""

    async def lay_out(self, copy: CopyFacts, image_digest: str, resources: Resources, egress: Egress) -> str:
        """A new sandbox of that image with such a copy's files: its id."""

    async def drop(self, name: str) -> None:
        """Delete a copy; no error if it is gone."""

    async def reclaim(self, keep: set[str]) -> None:
        """Delete all kept copies but these."""

    async def prepare(self, image_digest: str, resources: Resources) -> str:
        """A sandbox that waits for `restore`: its id. `Host.destroy_sandbox` gives it back."""

    async def claim_template(
        self, template: Template, resources: Resources, egress: Egress
    ) -> tuple[str, dict[str, str]] | None:
        """Take a sandbox that goes on from this copy already: its id, and its execs by their originals' ids.

        None where none is ready; the more often that is asked for, the more are.
        """

    def keep_template(self, template: Template) -> None:
        """Have some of it ready from now on, asked for or not, until the copy is dropped."""

    async def restore(
        self,
        id_: str,
        copy: CopyFacts,
        image_digest: str,
        resources: Resources,
        execs: list[KnownExec],
        egress: Egress,
    ) -> set[str]:
        """Let a copy run as the sandbox of that id, prepared or not; returns the execs that it does not hold."""

    async def pause(self, id_: str) -> CopyFacts:
        """Copy it and stop it there: nothing happens inside from now on, and `park` follows."""

    async def park(self, id_: str) -> None:
        """End what `pause` stopped: its copy is all that is left; its execs wait for `restore`."""


class Host(Protocol):
    """One machine."""

    @property
    def execs(self) -> Execs:
        """Processes in its sandboxes."""

    @property
    def copies(self) -> Copies:
        """Copies of its sandboxes."""

    @property
    def files(self) -> Files:
        """Files in its sandboxes."""

    @property
    def system_files(self) -> Files:
        """The same as root, for the service itself: whatever root may do is no tenant's business here."""

    @property
    def ports(self) -> Ports:
        """Ports in its sandboxes."""

    @property
    def networks(self) -> Networks:
        """What leaves its sandboxes."""

    async def begin(self) -> None:
        """Begin what works in the background; what an earlier server left has been taken over by now."""

    # ---- images

    def images(self) -> list[ImageFacts]:
        """Those that are ready."""

    async def image(self, name: str) -> ImageFacts:
        """The image of that name, built on first use; errors of `fs.errors`."""

    # ---- sandboxes

    async def claim_sandbox(self, image: str, resources: Resources, egress: Egress) -> str | None:
        """Take a ready sandbox out of the pool: its id, or None where there is none that fits."""

    async def create_sandbox(self, id_: str, image: str, resources: Resources, egress: Egress) -> None:
        """Start a sandbox from the image of that name."""

    def shelves(self) -> list[ShelfFacts]:
        """What the pool holds."""

    async def recover_sandbox(self, id_: str, resources: Resources, execs: list[KnownExec]) -> set[str]:
        """Take over a sandbox of an earlier server; returns the execs that never began.

        SandboxGone when it has ended meanwhile: `post_mortem` tells why. Anything else raised means that it is lost.
        """

    def post_mortem(self, id_: str, resources: Resources) -> End:
        """Why a sandbox that has ended by itself did so; before `destroy_sandbox`."""

    async def destroy_sandbox(self, id_: str) -> Usage:
        """End a sandbox and remove what it had here. Never asks the guest; idempotent."""

    async def reclaim(self, keep: set[str]) -> None:
        """Remove what sandboxes other than these left on the machine."""

    async def next_end(self) -> tuple[str, End]:
        """The next sandbox that ends by itself."""

    def recover_parked(self, id_: str, execs: list[KnownExec]) -> bool:
        """After a restart, for a sandbox that was parked. True if it runs all the same: use `recover_sandbox`."""

    def hold(self, id_: str) -> None:
        """Somebody works in it: it stays thawed until as many `let_go` have followed."""

    def let_go(self, id_: str) -> None:
        """The other end of `hold`."""

    def is_idle(self, id_: str) -> bool:
        """Whether nobody uses it and nothing in it works: it is frozen."""

    def usage(self, id_: str) -> Usage:
        """What it uses now."""

    async def processes(self, id_: str) -> int:
        """How many processes run in it."""
