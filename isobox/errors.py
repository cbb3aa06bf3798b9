"""What can go wrong, as a caller would want to tell it apart.

IsoboxError
├── ConnectionFailed       no server there, or it stayed away longer than the client waits
├── StreamBroken           a stream ended out of protocol
├── ForkIncomplete         some children of a fork could not be made; carries those that were
├── ImageFailed            an image could not be made; carries it, and why
├── ExecFailed             `ExecResult.check()`: the program did not end with 0
└── ApiError               the server refused; carries its problem document
    ├── NotAuthenticated   401
    ├── NotFound           404
    ├── ConflictError      409
    │   └── SandboxEnded   …because the sandbox has ended
    ├── InvalidRequest     400, 413, 416, 422, 403
    ├── TooMany            429
    └── ServerError        5xx
"""

from typing import TYPE_CHECKING, Any

from isobox.printable import printable_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isobox.aio import AsyncSandbox
    from isobox.client import Sandbox
    from isobox.values import ExecResult, ImageInfo


class IsoboxError(Exception):
    """Anything this package raises on purpose; its text can be printed, whatever a server or a sandbox said."""

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class ConnectionFailed(IsoboxError):
    """No server there."""


class StreamBroken(IsoboxError):
    """A stream ended out of protocol."""


class ExecFailed(IsoboxError):
    """A program that was to succeed did not; `result` has everything."""

    def __init__(self, result: "ExecResult") -> None:
        self.result = result
        outcome = result.outcome
        how = f"ended with {outcome.reason} {outcome.exit_code}" if outcome else "still runs"
        text = f"{' '.join(result.argv)[:200]}: {how}"
        if result.error is not None:
            text += f": {result.error.name}: {result.error.message}"
            text += f" ({result.error.hint})" if result.error.hint else ""
        super().__init__(text)


class ImageFailed(IsoboxError):
    """An image could not be made: `image` as the server knows it, its `failure` with the structured error."""

    def __init__(self, image: "ImageInfo") -> None:
        self.image = image
        failure = image.failure or {}
        self.hint = str(failure.get("hint", ""))
        super().__init__(
            f"image {image.name} ({image.id}): {failure.get('detail')}" + (f" ({self.hint})" if self.hint else "")
        )


class ForkIncomplete(IsoboxError):
    """Some children could not be made: `children` are those that run, `problems` why others do not."""

    def __init__(self, children: "Sequence[Sandbox | AsyncSandbox]", problems: "list[dict[str, Any]]") -> None:
        self.children = children
        self.problems = problems
        super().__init__(f"{len(problems)} of {len(problems) + len(children)} children: {problems[0]['detail']}")


class ApiError(IsoboxError):
    """The server refused: status, code, detail, hint, retryable and request_id as in its problem document."""

    def __init__(self, problem: dict[str, Any]) -> None:
        self.status = int(problem.get("status", 0))
        self.code = str(problem.get("code", ""))
        self.detail = str(problem.get("detail", ""))
        self.hint = str(problem.get("hint", ""))
        self.retryable = bool(problem.get("retryable", False))
        self.request_id = str(problem.get("request_id", ""))
        super().__init__(self.detail + (f" ({self.hint})" if self.hint else ""))


class NotAuthenticated(ApiError):
    """No valid key."""


class NotFound(ApiError):
    """No such thing."""


class ConflictError(ApiError):
    """Not possible as things stand."""


class SandboxEnded(ConflictError):
    """The sandbox has ended."""


class InvalidRequest(ApiError):
    """The request cannot be served as it is."""


class TooMany(ApiError):
    """More at once than the server allows."""


class ServerError(ApiError):
    """The server failed."""


def api_error(status: int, problem: dict[str, Any]) -> ApiError:
    """The error that a refusal stands for."""
    problem = {"status": status, "detail": f"the server answered {status}", **problem}
    if problem.get("code") == "sandbox_ended":
        return SandboxEnded(problem)
    kinds: dict[int, type[ApiError]] = {401: NotAuthenticated, 404: NotFound, 409: ConflictError, 429: TooMany}
    return kinds.get(status, ServerError if status >= 500 else InvalidRequest)(problem)
