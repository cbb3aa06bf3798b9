"""Ends that the process could not write about: limits, signals, what never began."""

import errno
import signal
from pathlib import PurePosixPath
from typing import Final

from common.text import errno_text
from isolation.execs import ExecEnd
from sandbox_api.models.execs import ExecError, Outcome

_SIGNAL_HINTS: Final = {
    signal.SIGSEGV: "the program crashed: a bug in native code, or a stack that is too deep",
    signal.SIGABRT: "the program gave up by itself: the reason stands in its output",
    signal.SIGKILL: "something inside the sandbox killed it",
    signal.SIGTERM: "something asked it to end",
    signal.SIGPIPE: "it wrote to a pipe that nobody reads any more",
    signal.SIGBUS: "it used memory that is not there: is the disk or /dev/shm full?",
}

_NOT_FOUND_HINT: Final = (
    "check its spelling, or install it; a command line with pipes or && is `shell` in the API,"
    " and on a terminal an argument of sh -c"
)
_ROOT_HINT: Final = "it gives no rights in a sandbox: run what needs root with user=root (`isobox exec --user root ID`)"
_NOT_FOUND_HINTS: Final = {"sudo": _ROOT_HINT, "doas": _ROOT_HINT}


def signal_name(number: int) -> str:
    """SIGTERM for 15; SIG40 for what has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def outcome(end: ExecEnd, termination: str | None) -> Outcome:
    """How an exec ended; termination is the reason of its sandbox's end, if that is what ended it."""
    if end.kind == "exit" and not end.timed_out:
        return Outcome(reason="exit", exit_code=end.code)
    if end.out_of_memory and end.kind == "signal" and end.code == signal.SIGKILL and not end.timed_out:
        return Outcome(reason="oom", exit_code=137, signal="SIGKILL")
    if end.kind in ("signal", "exit"):
        reason = "timeout" if end.timed_out else "killed" if end.killed and end.code == signal.SIGKILL else "signal"
        return Outcome(reason=reason, exit_code=128 + end.code, signal=signal_name(end.code))  # type: ignore[arg-type]
    if end.kind == "failed":
        if end.errno in (errno.ENOENT, errno.ENOTDIR):
            return Outcome(reason="not_found", exit_code=127)
        return Outcome(reason="not_executable", exit_code=126)
    if termination == "oom":
        return Outcome(reason="oom", exit_code=137, signal="SIGKILL")
    return Outcome(reason="lost" if termination == "lost" else "sandbox_ended")


def out_of_memory(message: str) -> ExecError:
    """The error of an exec that lost a process for want of memory."""
    return ExecError(
        kind="oom",
        name="OutOfMemory",
        message=message,
        hint="use less memory at once, or create the sandbox with a larger memory_mb",
    )


def diagnose(result: Outcome, end: ExecEnd, argv: list[str], timeout_s: float | None, detail: str) -> ExecError | None:
    """An error for an end by a limit or a signal; detail is what is known of the sandbox's end."""
    program = argv[0]
    if result.reason == "timeout":
        message = (
            f"it ran longer than timeout_s={timeout_s:g}, and was killed with all its processes"
            if timeout_s
            else "it ran too long"
        )
        return ExecError(
            kind="timeout",
            name="Timeout",
            message=message,
            hint="give it more time, or do less at once; wait=false lets it run in the background",
        )
    if result.reason == "oom":
        return out_of_memory(end.out_of_memory or detail)
    if result.reason == "not_found":
        return ExecError(
            kind="start",
            name="CommandNotFound",
            message=f"{program}: not found",
            hint=_NOT_FOUND_HINTS.get(PurePosixPath(program).name, _NOT_FOUND_HINT),
        )
    if result.reason == "not_executable":
        message = f"{program}: {errno_text(end.errno)}"
        return ExecError(
            kind="start",
            name="NotExecutable",
            message=message,
            hint="make it executable (chmod +x) and see that its first line names an interpreter that exists",
        )
    if result.reason in ("signal", "killed"):
        return ExecError(
            kind="signal",
            name=result.signal or "",
            message=f"ended by {result.signal}",
            hint=_SIGNAL_HINTS.get(signal.Signals(end.code), "") if end.code in set(signal.Signals) else "",
        )
    if result.reason in ("sandbox_ended", "lost"):
        return ExecError(
            kind="sandbox", name="SandboxEnded", message=detail or "its sandbox ended", hint="create another sandbox"
        )
    return None
