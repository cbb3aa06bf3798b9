"""Text from a server or a sandbox, made fit for a terminal.

Names, labels, errors and logs may hold escape sequences, which set a terminal's title or clipboard and hide what
stands there, and characters that reverse the order of others. They are shown as Python's literals write them. What a
person runs in a sandbox, to see its output, stays as it comes.
"""

import re
from typing import Final, TextIO

_COLOURS: Final = re.compile(r"\x1b\[[0-9;:]{0,32}m")
_RESET: Final = "\x1b[m"


def printable(text: str) -> str:
    """One line: whatever is not printable is visible as an escape, line breaks and tabs too."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def printable_lines(text: str, *, colours: bool = False) -> str:
    """The same with line breaks and tabs as they stand; a lone carriage return breaks the line.

    With colours, sequences that set colours and nothing else are kept, each line reset at its end.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(_line(line, colours=colours) for line in re.split("(\n)", text))


def for_terminal(text: str, stream: TextIO) -> str:
    """What to write to a stream: for a terminal made printable, colours kept; for anything else as it is."""
    return printable_lines(text, colours=True) if stream.isatty() else text


def _line(line: str, *, colours: bool) -> str:
    if line == "\n":
        return line
    if not colours or not _COLOURS.search(line):
        return _with_tabs(line)
    ends, parts = 0, []
    for match in _COLOURS.finditer(line):
        parts += [_with_tabs(line[ends : match.start()]), match.group()]
        ends = match.end()
    return "".join([*parts, _with_tabs(line[ends:]), _RESET])


def _with_tabs(text: str) -> str:
    return "\t".join(printable(part) for part in text.split("\t"))


def _escaped(character: str) -> str:
    code = ord(character)
    if code in _SHORT:
        return _SHORT[code]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_SHORT: Final = {9: "\\t", 10: "\\n", 13: "\\r"}
