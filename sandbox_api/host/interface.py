"""What the HTTP side asks of a machine: plain data in and out, no live objects, no callbacks.

In process today (local.py). Output is not part of it: it is read from the log files, whose place `log_path` tells.
Unless said otherwise every call may raise the errors of `isolation.errors`.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fs.buckets.objects import Keys as Keys
from fs.buckets.objects import Place as Place
from fs.compare import Difference as Difference
from fs.oci.login import Login
from gpu.device import Device as Device
from gpu.device import Inventory as Inventory
from gpu.device import Sample as Sample
from isolation.cgroups import Usage as Usage
from isolation.connections import Listener as Listener
from isolation.execlog import EventType as EventType
from isolation.execs import ExecEnd as ExecEnd
from isolation.execs import ExecSpec as ExecSpec
from isolation.execs import Terminal as Terminal
from isolation.files import Change as Change
from isolation.files import Entry as Entry
from isolation.pool import ShelfFacts as ShelfFacts
from isolation.sandbox import End as End
from isolation.spec import BARE as BARE
from isolation.spec import DEFAULT as DEFAULT
from isolation.spec import Equipment as Equipment
from isolation.spec import Resources as Resources
from netpolicy.gateway.ward import Authority as Authority
from netpolicy.gateway.ward import Credentials as Credentials
from netpolicy.network import Egress as Egress
from netpolicy.policy import CLOSED as CLOSED
from netpolicy.policy import Policy as Policy


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image that is ready; config as `fs.images.Image` has it."""

    id: str
    name: str
    digest: str
    size: int
    created_at: float
    config: dict[str, Any]


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
        self,
        sandbox: str,
        path: str,
        size: int,
        mode: int | None,
        contents: AsyncIterator[bytes],
        user: str,
        *,
        changed_ns: int = -1,
    ) -> Entry:
        """Replace a file as a whole; size is -1 where it is not known beforehand.

        With changed_ns only a file that was last changed at that moment is replaced (else ESTALE).
        """

    async def mkdir(self, sandbox: str, path: str, parents: bool, user: str) -> Entry:
        """Make a folder."""

    async def remove(self, sandbox: str, path: str, recursive: bool, user: str) -> None:
        """Delete a file or folder."""

    async def empty(self, sandbox: str, path: str, user: str) -> None:
        """Delete what a folder holds, but for what is mounted there."""

    async def page(self, sandbox: str, path: str, after: str, limit: int, user: str) -> list[Entry]:
        """Some of what a folder holds, in byte order of the names, those behind after."""

    async def move(self, sandbox: str, path: str, to: str, overwrite: bool, user: str) -> Entry:
        """Give a file or folder another name."""

    async def copy(self, sandbox: str, path: str, to: str, overwrite: bool, user: str) -> Entry:
        """Copy a file, or a folder and all that it holds."""

    async def chmod(self, sandbox: str, path: str, mode: int, recursive: bool, user: str) -> Entry:
        """Set permissions."""

    def pack(self, sandbox: str, path: str, user: str) -> AsyncIterator[Entry | bytes]:
        """The entry first, then a tar archive of it: a folder's contents, or one file."""

    async def unpack(self, sandbox: str, path: str, owners: bool, contents: AsyncIterator[bytes], user: str) -> Entry:
        """Unpack a tar archive into a folder, which is made; with owners, members belong to whom the archive says."""

    def watch(self, sandbox: str, path: str, recursive: bool, user: str) -> AsyncIterator[Change]:
        """What changes in a folder, from its `ready` on."""


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

    async def park(self, id_: str, image_digest: str) -> None:
        """End what `pause` stopped: its copy is all that is left; its execs wait for `restore`, upon that image."""


class Images(Protocol):
    """The machine's images, by names of its own; errors of `fs.errors`.

    What takes long tells how it goes, line by line, and then the image. To leave the iterator stops the work.
    """

    def all(self) -> list[ImageFacts]:
        """Those that a person named."""

    def named(self, name: str) -> ImageFacts | None:
        """The image of that name, ready or not."""

    async def ensure(self, name: str) -> ImageFacts:
        """The image of that name, built or renewed first where it has to be."""

    def pull(self, name: str, reference: str, login: Login | None) -> AsyncIterator[str | ImageFacts]:
        """Make an image of one in a registry."""

    def derive(
        self, name: str, image_digest: str, copy: CopyFacts | None, config: dict[str, Any]
    ) -> AsyncIterator[str | ImageFacts]:
        """Make an image of another one's files, with a copy's (`Copies.take_files`) over them."""

    def push(self, name: str, reference: str, login: Login | None) -> AsyncIterator[str]:
        """Send an image to a registry; the last line is the digest of its manifest there."""

    async def blob(self, key: str, offset: int, length: int) -> bytes | None:
        """A part of what other machines may read of this one's store; None if there is no such key."""

    async def differences(self, older: str, newer: str, most: int) -> tuple[list[Difference], bool]:
        """What differs between two images (digests), by path, at most so many; and whether there is more."""

    async def remove(self, name: str) -> None:
        """Forget an image; sandboxes that run from it go on."""

    async def prune(self) -> None:
        """Delete contents that no image has."""


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """A version of a volume: its digest, and the bytes of its files."""

    digest: str
    size: int


class Volumes(Protocol):
    """Versions of volumes: trees of files that outlive sandboxes; errors of `fs.errors`."""

    async def keep(
        self, version: str, archive: AsyncIterator[bytes], *, below: str | None, at: str, most: int
    ) -> VolumeFacts:
        """Keep a tar archive's files as a version; with below, over those of that version, in the folder at.

        most bounds the bytes of its files.
        """

    def pack(self, version: str | None, path: str, *, owner: int | None = None) -> AsyncIterator[bytes]:
        """A version's files below a folder, or one file of it, as a tar archive; without a version an empty one.

        With owner (a user's number) that is whose they are, and the folder itself is a member.
        """

    def read(self, version: str, path: str) -> AsyncIterator[bytes]:
        """The bytes of a version's file."""

    async def list_folder(self, version: str, path: str) -> list[Entry]:
        """What a folder of a version holds."""

    async def remove(self, version: str) -> None:
        """Forget a version."""


@dataclass(frozen=True, slots=True)
class BucketMount:
    """A bucket in a sandbox: at path, held inside at an address; owner is the number of its files' user."""

    path: str
    address: str
    place: Place
    keys: Keys | None
    read_only: bool
    owner: int


class Buckets(Protocol):
    """Buckets as folders of sandboxes; `fs.errors.BucketFailed` too."""

    async def check(self, mount: BucketMount) -> None:
        """Whether the bucket can be listed."""

    async def mount(self, sandbox: str, mount: BucketMount) -> None:
        """Mount it inside and serve it; `isolation.foldermount.MountFailed`."""

    async def serve(self, sandbox: str, mounts: list[BucketMount]) -> None:
        """Go on with what is mounted inside already: after a restart, a resume, in a copy."""

    async def settle(self, sandbox: str) -> None:
        """Before it ends: hear of all that has been closed inside. What it takes to store that goes on by itself."""

    async def leave(self, sandbox: str) -> None:
        """It has ended: wait a while for what is being stored, which goes on if it takes longer."""

    def left(self) -> set[str]:
        """Sandboxes of which there are files on this machine that were to be stored."""

    async def finish(self, sandbox: str, mounts: list[BucketMount]) -> None:
        """Store what a sandbox that has ended left; with no mounts it is deleted."""

    async def next_failure(self) -> tuple[str, dict[str, Any]]:
        """The next failure: whose, and what (path of the mount, file in it, detail)."""


class Gpus(Protocol):
    """Its GPUs; errors of `gpu.errors`."""

    @property
    def inventory(self) -> Inventory:
        """What there was at the last look."""

    async def look(self) -> Inventory:
        """What there is now."""

    async def equip(self, devices: tuple[Device, ...]) -> Equipment:
        """What a sandbox needs to use these, and no others."""

    async def clean(self, device: Device) -> None:
        """See that nobody uses it any more, and overwrite its memory."""

    async def forgive(self, uuid: str) -> None:
        """Forget what the driver reported of it."""


class Host(Protocol):
    """One machine."""

    @property
    def gpus(self) -> Gpus:
        """Its GPUs."""

    @property
    def buckets(self) -> Buckets:
        """Buckets in its sandboxes."""

    @property
    def volumes(self) -> Volumes:
        """Volumes that it keeps."""

    @property
    def images(self) -> Images:
        """Its images."""

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
        """Files as root, for the service itself, where a program inside may have prepared the way.

        Reads, writes, packs, unpacks and empties. Whatever root may do is no tenant's business here. No link is
        followed that anybody but root may have put there, and no mount is entered: FileFailed with ELOOP.
        """

    @property
    def ports(self) -> Ports:
        """Ports in its sandboxes."""

    @property
    def networks(self) -> Networks:
        """What leaves its sandboxes."""

    async def begin(self) -> None:
        """Begin what works in the background; what an earlier server left has been taken over by now."""

    @property
    def leftovers(self) -> list[str]:
        """What servers of other state directories left on the machine and nobody will take back, in words."""

    def problems(self) -> list[str]:
        """Say why no sandbox can be created now; empty where one can."""

    # ---- sandboxes

    async def claim_sandbox(
        self, image: str, resources: Resources, egress: Egress, equipment: Equipment = BARE
    ) -> str | None:
        """Take a ready sandbox out of the pool: its id, or None where there is none that fits."""

    async def create_sandbox(
        self, id_: str, image: str, resources: Resources, egress: Egress, equipment: Equipment = BARE
    ) -> None:
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
