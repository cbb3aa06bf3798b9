"""A bar while a map goes on (`map(…, progress=True)`): by rich, on stderr."""

from collections.abc import Iterator
from typing import Any

from isobox.functions.errors import FunctionError
from isobox.printable import printable


def shown(results: Iterator[Any], name: str, total: int | None) -> Iterator[Any]:
    """The same results, counted on the way; total None where nobody knows it. FunctionError without rich."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError as error:
        raise FunctionError("a progress bar takes rich: pip install 'isobox[cli]'") from error
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(printable(name), total=total)
        for each in results:
            progress.advance(task)
            yield each


def length(iterables: tuple[Any, ...]) -> int | None:
    """How many inputs they make side by side, if they tell."""
    try:
        return min(len(each) for each in iterables)
    except (TypeError, ValueError):
        return None
