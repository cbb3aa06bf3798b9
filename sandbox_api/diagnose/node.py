"""An uncaught error of Node.js, as it prints it to stderr."""

import re
from typing import Final

from sandbox_api.models.execs import ErrorFrame, ExecError

_NAME: Final = re.compile(
    r"^(?:Uncaught )?(?P<name>(?:[A-Z]\w*)?(?:Error|Exception))(?: \[(?P<code>\w+)\])?: (?P<message>.*)$"
)
_FRAME: Final = re.compile(
    r"^ {4}at (?:(?P<function>.+?) \()?(?P<file>(?:file://|node:)?[^()]+?):(?P<line>\d+)(?::\d+)?\)?$"
)
_PLACE: Final = re.compile(r"^(?P<file>(?:file://|node:)?/?[^\s:].*?):(?P<line>\d+)$")


def diagnose(stderr: str) -> ExecError | None:
    """The uncaught error in stderr, or None; frames innermost last."""
    lines = stderr.splitlines()
    found = [(i, match) for i, line in enumerate(lines) if (match := _NAME.match(line))]
    at, head = next(((i, m) for i, m in found if any(_FRAME.match(line) for line in lines[i + 1 : i + 12])), (0, None))
    syntax = next(((i, m) for i, m in found if m["name"] == "SyntaxError"), None)
    if head is None and syntax is not None:
        at, head = syntax
    if head is None:
        return None
    frames: list[ErrorFrame] = []
    for line in lines[at + 1 :]:
        if match := _FRAME.match(line):
            if not match["file"].startswith("node:"):  # the interpreter's own levels tell nothing
                file = match["file"].removeprefix("file://")
                frames.append(ErrorFrame(file=file, line=int(match["line"]), function=match["function"]))
        elif frames:
            break
    place = next(((i, m) for i, line in enumerate(lines[:at]) if (m := _PLACE.match(line))), None)
    if place is not None and place[0] + 1 < at and not place[1]["file"].startswith("node:"):
        source, where = lines[place[0] + 1].strip(), place[1]
        _attach(frames, where["file"].removeprefix("file://"), int(where["line"]), source)
    name, message = head["name"], head["message"]
    return ExecError(
        kind="node", name=name, message=message[:4000], frames=frames[:32][::-1], hint=_hint(name, message, stderr)
    )


def _attach(frames: list[ErrorFrame], file: str, line: int, source: str) -> None:
    for frame in frames:
        if (frame.file, frame.line) == (file, line):
            frame.source = source
            return
    frames.insert(0, ErrorFrame(file=file, line=line, source=source))


def _hint(name: str, message: str, stderr: str) -> str:
    if match := re.search(r"Cannot find (?:module|package) '([^']+)'", message):
        module = match.group(1)
        if module.startswith((".", "/")):
            return f"{module!r} does not exist: check the path, relative to the importing file"
        return f"the package {module!r} is not installed: npm install {module} (if the network policy allows it)"
    if name == "ReferenceError":
        return "define or import the name before this line; check its spelling"
    if name == "SyntaxError":
        return 'the code does not parse; in a .js file, import needs "type": "module" or the ending .mjs'
    if "ENOENT" in message:
        return "the file does not exist: check the working directory and the spelling"
    if "ECONNREFUSED" in stderr or "ENOTFOUND" in stderr or "EAI_AGAIN" in stderr:
        return "the sandbox's network policy denies what it does not name: ask for the host to be allowed"
    return ""
