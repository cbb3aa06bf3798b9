"""How the command line speaks: whatever it prints passes here, but for the output of what a person runs.

Nothing from a server or a sandbox is taken for markup, and nothing of it reaches the terminal as a control sequence.
"""

import sys
from collections.abc import Iterable
from datetime import datetime

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from isobox.printable import for_terminal, printable, printable_lines

err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def complain(text: str) -> None:
    """A message on stderr, with our name on it."""
    err.print(Text.assemble(("isobox:", "red"), " ", printable_lines(text)))


def note(text: str) -> None:
    """A line on stderr."""
    err.print(Text(printable(text)))


def say(text: object) -> None:
    """A line on stdout."""
    print(printable(str(text)), flush=True)


def print_lines(text: str) -> None:
    """Lines that something inside wrote, not to a terminal: colours are kept."""
    sys.stdout.write(printable_lines(text, colours=sys.stdout.isatty()))
    sys.stdout.flush()


def print_contents(contents: bytes) -> None:
    """A file's bytes: as they are, but for a terminal."""
    if sys.stdout.isatty():
        sys.stdout.write(for_terminal(contents.decode(errors="backslashreplace"), sys.stdout))
    else:
        sys.stdout.buffer.write(contents)
    sys.stdout.flush()


def print_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Columns as wide as they need to be: an id that is cut is no id."""
    lines = [tuple(printable(cell) for cell in line) for line in (header, *rows)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def moment(at: datetime | None) -> str:
    """A moment as tables show it."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"
