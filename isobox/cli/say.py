"""How the command line complains."""

from collections.abc import Iterable
from datetime import datetime

from rich.console import Console

err = Console(stderr=True, soft_wrap=True, highlight=False)


def complain(text: str) -> None:
    """A line on stderr, with our name on it."""
    err.print(f"[red]isobox:[/] {text}")


def print_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Columns as wide as they need to be: an id that is cut is no id."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def moment(at: datetime | None) -> str:
    """A moment as tables show it."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"
