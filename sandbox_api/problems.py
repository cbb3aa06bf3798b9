"""Errors as problem documents (RFC 9457): the only place where an error becomes a status code."""

import errno
from collections.abc import Mapping
from typing import Final

from common.errors import IsoboxError
from fs.errors import BucketFailed, ImageError, ImageInvalid, StoreFull, StoreUnreachable, UnknownImage
from gpu.errors import GpuBusy, GpuImpossible, GpuUnusable
from isolation.channel.frames import Stage
from isolation.channel.link import StartFailed
from isolation.connections import PortClosed
from isolation.errors import (
    ChannelViolation,
    CheckpointRefused,
    DiskFull,
    GuestUnresponsive,
    HelperBroken,
    LimitReached,
    RunscError,
    SandboxGone,
    SnapshotUnusable,
)
from isolation.files import FileFailed
from isolation.foldermount import MountFailed
from netpolicy.errors import GatewayUnavailable, NetworkUnavailable, PolicyInvalid

TYPE_PREFIX: Final = "urn:isobox:problem:"


class Problem(IsoboxError):
    """An error that is answered as it stands."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        hint: str = "",
        retryable: bool = False,
        title: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail, hint=hint)
        self.status = status
        self.code = code
        self.retryable = retryable
        self.title = title or _TITLES.get(status, "Error")
        self.headers = headers

    def document(self, request_id: str) -> dict[str, object]:
        """The body of the answer."""
        return {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "hint": self.hint,
            "retryable": self.retryable,
            "request_id": request_id,
        }


_TITLES: Final = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Too large",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    422: "Invalid request",
    429: "Too many",
    500: "Internal error",
    502: "Bad gateway",
    503: "Unavailable",
    504: "No answer in time",
    507: "No space",
}

_FILE_ERRORS: Final = {
    errno.ENOENT: (404, "file_not_found", "create it first, or list the folder to see what is there"),
    errno.ENOTDIR: (409, "not_a_directory", "a part of the path is a file"),
    errno.EISDIR: (409, "is_a_directory", "name a file; a folder can be listed"),
    errno.EEXIST: (409, "file_exists", "delete it first, or use another name"),
    errno.ENOTEMPTY: (409, "directory_not_empty", "delete with recursive=true"),
    errno.EACCES: (403, "permission_denied", "use a path that the sandbox's user may touch, or user=root"),
    errno.EPERM: (403, "permission_denied", "use a path that the sandbox's user may touch, or user=root"),
    errno.EROFS: (403, "read_only", "this part of the file system cannot be written"),
    errno.ENOSPC: (507, "no_space", "delete something in the sandbox, or create it with a larger disk_mb"),
    errno.ENAMETOOLONG: (400, "name_too_long", "a name has at most 255 bytes, a path 4095"),
    errno.ELOOP: (409, "too_many_links", "the path goes round in a circle of symbolic links"),
    errno.EINVAL: (409, "not_a_file", "only regular files have contents"),
    errno.EBADMSG: (400, "archive_invalid", "names in an archive may not lead out of its folder"),
    errno.EPIPE: (400, "archive_invalid", "it is cut short"),
    errno.ESTALE: (409, "file_changed", "somebody wrote it meanwhile: read it again, then edit"),
    errno.E2BIG: (413, "listing_too_large", "list with a smaller depth"),
}


def from_error(error: IsoboxError) -> Problem:
    """What an error of the packages below means to a client."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, FileFailed):
        status, code, hint = _FILE_ERRORS.get(error.errno, (409, "file_error", ""))
        return Problem(status, code, error.detail, hint=hint)
    if isinstance(error, StartFailed):
        return start_failed(error)
    for kind, (status, code, retryable) in _ERRORS.items():
        if isinstance(error, kind):
            return Problem(status, code, error.detail, hint=error.hint, retryable=retryable)
    return Problem(500, "internal", error.detail, hint=error.hint)


_ERRORS: Final[Mapping[type[IsoboxError], tuple[int, str, bool]]] = {
    UnknownImage: (404, "image_not_found", False),
    ImageInvalid: (422, "image_invalid", False),
    BucketFailed: (422, "bucket_unusable", False),
    MountFailed: (422, "mount_failed", False),
    GpuImpossible: (422, "gpu_impossible", False),
    GpuBusy: (409, "gpu_busy", True),
    GpuUnusable: (503, "gpu_unusable", False),
    StoreFull: (507, "store_full", False),
    StoreUnreachable: (502, "registry_unreachable", True),
    ImageError: (500, "image_failed", True),
    SandboxGone: (409, "sandbox_ended", False),
    CheckpointRefused: (409, "checkpoint_refused", True),
    PortClosed: (502, "port_closed", True),
    DiskFull: (507, "disk_full", True),
    SnapshotUnusable: (409, "snapshot_unusable", False),
    GuestUnresponsive: (504, "guest_unresponsive", True),
    LimitReached: (429, "too_many_execs", True),
    HelperBroken: (502, "helper_broken", False),
    ChannelViolation: (409, "sandbox_ended", False),
    RunscError: (500, "runsc_failed", True),
    PolicyInvalid: (422, "policy_invalid", False),
    GatewayUnavailable: (503, "gateway_unavailable", True),
    NetworkUnavailable: (503, "network_unavailable", True),
}


def start_failed(error: StartFailed) -> Problem:
    """Why a process never began, other than for want of its program."""
    if error.stage == Stage.CWD:
        return Problem(
            422,
            "workdir_unusable",
            f"workdir: {error.detail.partition(': ')[2]}",
            hint="create it first, or choose another",
        )
    if error.stage == Stage.USER:
        if error.errno == errno.EPERM:
            return Problem(403, "root_forbidden", "this server runs nothing as root", hint="leave `user` out")
        return Problem(
            422,
            "user_unknown",
            "there is no such user or group in the sandbox",
            hint="see its /etc/passwd and /etc/group",
        )
    if error.stage == Stage.REQUEST:
        return invalid("the sandbox cannot take this request", "shorten argv and env")
    return Problem(
        503,
        "start_failed",
        f"the process could not be started: {error.detail}",
        hint="the sandbox is short of processes or memory: end some, or create it larger",
        retryable=True,
    )


def invalid(detail: str, hint: str = "") -> Problem:
    """422 for a value that cannot be used."""
    return Problem(422, "invalid_request", detail, hint=hint)


def not_found(what: str) -> Problem:
    """404, the same for what never was and what belongs to somebody else."""
    return Problem(404, f"{what}_not_found", f"no such {what}", hint="list them to see which there are")


def sandbox_ended(state: str, reason: str | None) -> Problem:
    """409 for a use of what has ended."""
    why = f" ({reason})" if reason else ""
    return Problem(409, "sandbox_ended", f"the sandbox is {state}{why}", hint="create another one")
