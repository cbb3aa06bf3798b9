"""A shell that could not do as told, and programs that say in one line what is wrong."""

import re
from typing import Final

from sandbox_api.models.execs import ErrorFrame, ExecError

_PATTERNS: Final = (
    (
        re.compile(r"^(?P<file>[^\s:]+): (?:line )?(?P<line>\d+): (?P<what>.+?): (?:command )?not found$"),
        "CommandNotFound",
    ),
    (re.compile(r"^(?P<file>[^\s:]+): (?:line )?(?P<line>\d+): (?P<what>.+?): Permission denied$"), "PermissionDenied"),
    (
        re.compile(
            r"^(?P<file>[^\s:]+): (?:line )?(?P<line>\d+): (?:cannot open )?(?P<what>.+?): No such file(?: or directory)?$"
        ),
        "NoSuchFile",
    ),
    (re.compile(r"^(?P<file>[^\s:]+): (?:-c: )?(?:line )?(?P<line>\d+): (?P<what>[Ss]yntax error.*)$"), "SyntaxError"),
    (re.compile(r"^(?P<file>[^\s:]+): (?P<line>)(?P<what>.+?): (?:command )?not found$"), "CommandNotFound"),
    (re.compile(r"^(?P<file>[\w./-]+): (?P<line>)(?P<what>.*No such file or directory)$"), "NoSuchFile"),
)
_HINTS: Final = {
    "CommandNotFound": "{what!r} is not installed in this image: check its spelling, or install it",
    "PermissionDenied": "make it executable (chmod +x), or run it with user=root",
    "NoSuchFile": "check the path and the working directory",
    "SyntaxError": "the shell cannot parse this: look for an open quote, or a missing done, fi or bracket",
}


def diagnose(stderr: str, exit_code: int) -> ExecError | None:
    """What the last telling line of stderr says; for exit code 126 and 127 something in any case."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    for line in reversed(lines[-40:]):
        for pattern, name in _PATTERNS:
            if match := pattern.match(line):
                what = match["what"]
                number = int(match["line"]) if match["line"] else None
                return ExecError(
                    kind="shell",
                    name=name,
                    message=line[:4000],
                    frames=[ErrorFrame(file=match["file"], line=number)],
                    hint=_HINTS[name].format(what=what),
                )
    last = lines[-1][:4000] if lines else ""
    if exit_code == 127:
        return ExecError(
            kind="shell", name="CommandNotFound", message=last, hint="a command was not found: check its spelling"
        )
    if exit_code == 126:
        return ExecError(
            kind="shell",
            name="NotExecutable",
            message=last,
            hint="a command cannot be executed: check its mode (chmod +x) and its first line",
        )
    return None
