"""Who owns what on this machine: a record per state directory whose server made something, below /run/isobox/owners.

The random id in the record lies in the state directory too (the file `identity`). A server holds a lock on its record
as long as it lives (flock(2)), whatever ends it. Whoever looks at what was made on the machine learns from this:

    LIVING    a server holds the record
    WAITING   no server runs, but the state directory is there: the next server of it takes over what the last one made
    GONE      the state directory was removed, or begun anew: nobody will ever take over what is left

/run lives exactly as long as what the records tell of: until the next boot.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from common.errors import IsoboxError
from common.ids import is_id, new_id

FOLDER: Final = Path("/run/isobox/owners")
IDENTITY: Final = "identity"
_LOCK: Final = Path("/run/isobox-network.lock")
"""Taken by servers of every version while they choose what nobody else may have."""
_RECORD_SIZE: Final = 4096
_CLAIM_WITHIN_S: Final = 20.0


class Standing(StrEnum):
    """What can be said of an owner; see the module."""

    LIVING = "living"
    WAITING = "waiting"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Owner:
    """One state directory's server: its process (the last one's, where none lives), and its part of the network."""

    id: str
    state: str
    pid: int = 0
    tag: str = ""
    share: str = ""

    @classmethod
    def parse(cls, text: str) -> "Owner | None":
        """Read a record; None for what is not one."""
        try:
            raw = json.loads(text)
            owner = cls(str(raw["id"]), str(raw["state"]), int(raw["pid"]), str(raw["tag"]), str(raw["share"]))
        except (ValueError, KeyError, TypeError):
            return None
        return owner if is_id(owner.id, "own") else None

    def encode(self) -> bytes:
        """Write a record: of one size, so that one write replaces another's whole."""
        return json.dumps(asdict(self)).encode().ljust(_RECORD_SIZE)


@contextmanager
def machine_lock() -> Iterator[None]:
    """Nobody else on this machine chooses, or sweeps, meanwhile."""
    with open(_LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_identity(state: Path) -> str | None:
    """Read the id that a state directory has; None where it has none (or there is no such directory)."""
    try:
        text = (state / IDENTITY).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if is_id(text, "own") else None


def identify(state: Path, *, folder: Path = FOLDER) -> str:
    """Read the id of a state directory, or give it one; whoever calls holds the directory's lock."""
    if (known := read_identity(state)) is not None:
        return known
    lost = None
    if (state / "isobox.db").exists():  # not a new one: it only lost its identity
        same = [owner for owner in _records(folder) if owner.state == str(state)]
        newest = max(same, key=lambda owner: (folder / owner.id).stat().st_mtime_ns, default=None)
        lost = None if newest is None else newest.id
    return _give_identity(state, lost or new_id("own"))


def _give_identity(state: Path, id_: str) -> str:
    partial = state / f"{IDENTITY}.new"
    with open(partial, "w") as file:
        file.write(id_ + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(state / IDENTITY)
    return id_


class Claim:
    """A record that is ours; made by `claim`."""

    def __init__(self, fd: int, path: Path, owner: Owner) -> None:
        self._fd = fd
        self._path = path
        self.owner = owner
        self._write()

    def _write(self) -> None:
        os.pwrite(self._fd, self.owner.encode(), 0)

    def note(self, *, tag: str, share: str) -> None:
        """Write down the part of the network that this owner has."""
        self.owner = replace(self.owner, tag=tag, share=share)
        self._write()

    def release(self, *, nothing_left: bool) -> None:
        """Let go of the record; it goes where nothing is left that it would tell of."""
        if nothing_left:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)


def claim(state: Path, *, folder: Path = FOLDER) -> Claim:
    """Make the record of a state directory ours, whose lock we hold, until `release`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with machine_lock():
        id_ = identify(state, folder=folder)
        before = read(folder / id_)
        if before is not None and before.state != str(state) and standing(before, folder=folder) is not Standing.GONE:
            # This directory is a copy of another that is still there.
            id_, before = _give_identity(state, new_id("own")), None
    fd = _lock_record(folder / id_)
    before = before or Owner(id_, str(state))
    return Claim(fd, folder / id_, replace(before, state=str(state), pid=os.getpid()))


def _lock_record(path: Path) -> int:
    deadline = time.monotonic() + _CLAIM_WITHIN_S
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError:  # somebody looks whether we live
            if time.monotonic() > deadline:
                os.close(fd)
                raise IsoboxError(
                    f"somebody else holds {path}", hint="see who with `lsof`; only a server of this state directory may"
                ) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        time.sleep(0.01)


def read(path: Path) -> Owner | None:
    """Read one record; None where there is none, or not one of ours."""
    try:
        return Owner.parse(path.read_text())
    except (OSError, UnicodeDecodeError):
        return None


def _records(folder: Path) -> list[Owner]:
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    return [owner for path in paths if (owner := read(path)) is not None and owner.id == path.name]


def owners(*, folder: Path = FOLDER) -> dict[str, tuple[Owner, Standing]]:
    """All records, by id, and what can be said of their owners."""
    return {owner.id: (owner, standing(owner, folder=folder)) for owner in _records(folder)}


def standing(owner: Owner, *, folder: Path = FOLDER) -> Standing:
    """Tell whether an owner lives; see the module."""
    if _held(folder / owner.id):
        return Standing.LIVING
    return Standing.WAITING if read_identity(Path(owner.state)) == owner.id else Standing.GONE


def _held(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def forget(id_: str, *, folder: Path = FOLDER) -> None:
    """Remove the record of an owner that is gone, after all that it told of."""
    with contextlib.suppress(FileNotFoundError):
        (folder / id_).unlink()
