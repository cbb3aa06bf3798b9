"""What the API answers, as values."""

import base64
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from isobox.errors import ExecFailed, api_error


def time_of(text: str | None) -> datetime | None:
    """A moment as the API tells it."""
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00"))


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """A sandbox as it stood when asked; `raw` is the whole answer."""

    id: str
    state: str
    image: str
    name: str | None
    labels: dict[str, str]
    created_at: datetime | None
    expires_at: datetime | None
    ended_at: datetime | None
    main: str | None
    parent: str | None
    termination: dict[str, Any] | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "SandboxInfo":
        """From the API's answer."""
        return cls(
            id=raw["id"],
            state=raw["state"],
            image=raw["image"],
            name=raw["name"],
            labels=raw["labels"],
            created_at=time_of(raw["created_at"]),
            expires_at=time_of(raw["expires_at"]),
            ended_at=time_of(raw["ended_at"]),
            main=raw["main"],
            parent=raw["parent"],
            termination=raw["termination"],
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an exec ended; the API document lists the reasons."""

    reason: str
    exit_code: int | None
    signal: str | None


@dataclass(frozen=True, slots=True)
class Frame:
    """One level of a stack."""

    file: str
    line: int | None
    function: str | None
    source: str | None


@dataclass(frozen=True, slots=True)
class ExecError:
    """A failure made for a model to read; frames, the innermost last."""

    kind: str
    name: str
    message: str
    frames: list[Frame]
    hint: str

    @classmethod
    def parse(cls, raw: dict[str, Any] | None) -> "ExecError | None":
        """From the API's answer."""
        if raw is None:
            return None
        frames = [Frame(f["file"], f.get("line"), f.get("function"), f.get("source")) for f in raw["frames"]]
        return cls(raw["kind"], raw["name"], raw["message"], frames, raw["hint"])


@dataclass(frozen=True, slots=True)
class ExecResult:
    """An exec with head and tail of its output; duration in seconds, max_rss in MiB."""

    id: str
    argv: list[str]
    outcome: Outcome | None
    stdout: str
    stderr: str
    error: ExecError | None
    duration_s: float | None
    cpu_s: float | None
    max_rss_mb: float | None
    truncated: dict[str, Any] | None
    results: list[dict[str, Any]]
    """Of code run in a context: what it showed, each {mime: value}, bytes as base64."""
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "ExecResult":
        """From the API's answer."""
        outcome = raw["outcome"]
        return cls(
            id=raw["id"],
            argv=raw["argv"],
            outcome=None if outcome is None else Outcome(outcome["reason"], outcome["exit_code"], outcome["signal"]),
            stdout=raw["stdout"],
            stderr=raw["stderr"],
            error=ExecError.parse(raw["error"]),
            duration_s=raw["duration_s"],
            cpu_s=raw["cpu_s"],
            max_rss_mb=raw["max_rss_mb"],
            truncated=raw["truncated"],
            results=raw["results"],
            raw=raw,
        )

    @property
    def exit_code(self) -> int | None:
        """As a shell tells it; None while it runs or where it has none."""
        return None if self.outcome is None else self.outcome.exit_code

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with 0."""
        return self.outcome is not None and (self.outcome.reason, self.outcome.exit_code) == ("exit", 0)

    @property
    def text(self) -> str:
        """The last result as plain text; "" where there is none."""
        return str(self.results[-1].get("text/plain", "")) if self.results else ""

    def check(self) -> "ExecResult":
        """Itself; ExecFailed if it did not end well."""
        if not self.ok:
            raise ExecFailed(self)
        return self


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a stream: output as bytes in `data`, all else in `info`."""

    seq: int
    type: str
    data: bytes = b""
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Output as text; what is not UTF-8 replaced."""
        return self.data.decode(errors="replace")

    @classmethod
    def parse(cls, frame: str | bytes) -> "Event":
        """From a frame of isobox.v1.bin or isobox.v1.json."""
        if isinstance(frame, bytes):
            return cls(int.from_bytes(frame[1:9], "big"), "stdout" if frame[0] == 1 else "stderr", frame[9:])
        raw = json.loads(frame)
        if raw["type"] in ("stdout", "stderr"):
            data = raw["data"].encode() if "data" in raw else base64.b64decode(raw["data_b64"])
            return cls(raw["seq"], raw["type"], data)
        return cls(raw["seq"], raw["type"], info=raw["data"])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A kept copy of a sandbox; size in bytes on disk."""

    id: str
    name: str | None
    kind: str
    sandbox_id: str
    size_bytes: int
    created_at: datetime | None
    expires_at: datetime | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "Snapshot":
        """From the API's answer."""
        return cls(
            raw["id"],
            raw["name"],
            raw["kind"],
            raw["sandbox_id"],
            raw["size_bytes"],
            time_of(raw["created_at"]),
            time_of(raw["expires_at"]),
            raw,
        )


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image; size in bytes. `failure` says why it could not be made."""

    id: str
    name: str
    state: str
    digest: str | None
    size_bytes: int
    created_at: datetime | None
    failure: dict[str, Any] | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "ImageInfo":
        """From the API's answer."""
        return cls(
            raw["id"],
            raw["name"],
            raw["state"],
            raw["digest"],
            raw["size_bytes"],
            time_of(raw["created_at"]),
            raw["failure"],
            raw,
        )


@dataclass(frozen=True, slots=True)
class FileChange:
    """What happened to a file: ready created modified deleted attributes moved overflow gone; target is a new name."""

    type: str
    path: str
    target: str | None

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "FileChange":
        """From the stream; ApiError if it says that there is none."""
        if raw["type"] == "problem":
            raise api_error(int(raw["data"]["status"]), raw["data"])
        return cls(raw["type"], raw["path"], raw["target"])


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file; size in bytes."""

    name: str
    path: str
    type: str
    size: int
    mode: str
    modified_at: datetime | None
    target: str | None
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "FileInfo":
        """From the API's answer."""
        return cls(
            raw["name"],
            raw["path"],
            raw["type"],
            raw["size"],
            raw["mode"],
            time_of(raw["modified_at"]),
            raw["target"],
            raw,
        )


@dataclass(frozen=True, slots=True)
class FilePage:
    """Some of a folder's files, and where the list goes on (None: it does not)."""

    entries: list[FileInfo]
    cursor: str | None

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "FilePage":
        """From the API's answer."""
        return cls([FileInfo.parse(each) for each in raw["entries"]], raw["next_cursor"])
