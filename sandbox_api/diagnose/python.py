"""Python's traceback, as it stands at the end of stderr."""

import re
from typing import Final

from sandbox_api.models.execs import ErrorFrame, ExecError

_HEAD: Final = "Traceback (most recent call last):"
_FRAME: Final = re.compile(r'^ *(?:[|+] *)?File "(?P<file>.+?)", line (?P<line>\d+)(?:, in (?P<function>.+))?$')
_NAME: Final = re.compile(r"^(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$", re.DOTALL)
_MARKS: Final = re.compile(r"^[\s~^]+$")
_FRAMES_MAX: Final = 32


def diagnose(stderr: str) -> ExecError | None:
    """The last uncaught exception in stderr, or None if there is none."""
    lines = stderr.rstrip().splitlines()
    start = max((i for i, line in enumerate(lines) if line.strip(" |+") == _HEAD), default=-1)
    if start < 0:  # a syntax error in the script itself comes without the head line
        start = max((i for i, line in enumerate(lines) if _FRAME.match(line)), default=0) - 1
        if start < -1 or not lines or not re.match(r"^(Syntax|Indentation|Tab)Error: ", lines[-1]):
            return None
    frames: list[ErrorFrame] = []
    at = start + 1
    while at < len(lines):
        line = lines[at]
        if match := _FRAME.match(line):
            source = lines[at + 1].strip() if at + 1 < len(lines) and lines[at + 1].startswith("    ") else None
            frames.append(
                ErrorFrame(file=match["file"], line=int(match["line"]), function=match["function"], source=source)
            )
        elif line and not line.startswith((" ", "\t")):
            break
        at += 1
    match = _NAME.match("\n".join(lines[at:])) if at < len(lines) else None
    if match is None:
        return None
    name, message = match["name"], (match["message"] or "").strip()
    return ExecError(
        kind="python", name=name, message=message[:4000], frames=frames[-_FRAMES_MAX:], hint=_hint(name, message)
    )


def _quoted(message: str) -> str:
    match = re.search(r"'([^']+)'", message)
    return match.group(1) if match else ""


def _hint(name: str, message: str) -> str:
    short = name.rpartition(".")[2]
    quoted = _quoted(message)
    if short == "ModuleNotFoundError" and quoted:
        package = quoted.partition(".")[0]
        return f"the module {package!r} is not installed: pip install {package} (if the network policy allows it), or use an image that has it"
    if short == "ImportError" and quoted:
        return f"{quoted!r} is not there to import: check its spelling and the version of the package"
    if short == "NameError" and quoted:
        return f"define or import {quoted!r} before this line; check its spelling"
    if short == "FileNotFoundError" and quoted:
        return f"{quoted!r} does not exist: check the working directory and the spelling, or create it first"
    if short == "PermissionError":
        return "the process runs as an ordinary user: write below /home/user or /tmp, or run it with user=root"
    if short == "MemoryError":
        return "it needs more memory than there is: use less, or create the sandbox with a larger memory_mb"
    if short in ("SyntaxError", "IndentationError", "TabError"):
        return "the code does not parse: look at the line and at the one before it"
    if short in ("ConnectionRefusedError", "gaierror", "ConnectTimeout", "URLError", "ConnectionError"):
        return "the sandbox's network policy denies what it does not name: ask for the host to be allowed"
    if short == "KeyError":
        return f"there is no key {message}: print the keys that there are"
    if short == "RecursionError":
        return "the recursion does not end: check its base case"
    return ""
