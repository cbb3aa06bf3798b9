"""Which of the readers has something to say."""

from isolation.execs import ExecEnd
from sandbox_api.diagnose import limits, node, python, shell
from sandbox_api.models.execs import ExecError, Outcome

STDERR_READ = 64 << 10
"""So many bytes of stderr's end are looked at."""


def diagnose(
    result: Outcome, end: ExecEnd, argv: list[str], *, stderr: bytes, timeout_s: float | None, detail: str
) -> ExecError | None:
    """The structured error of an exec that ended so; None for exit code 0 and for failures nobody can read."""
    if result.reason != "exit":
        return limits.diagnose(result, end, argv, timeout_s, detail)
    if not result.exit_code:
        return None
    if end.out_of_memory:  # what it says of a child that was killed is not the reason
        return limits.out_of_memory(end.out_of_memory)
    text = stderr.decode(errors="replace").replace("\r\n", "\n")
    return python.diagnose(text) or node.diagnose(text) or shell.diagnose(text, result.exit_code)
