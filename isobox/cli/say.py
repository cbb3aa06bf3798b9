"""How the command line complains."""

from rich.console import Console

err = Console(stderr=True, soft_wrap=True, highlight=False)


def complain(text: str) -> None:
    """A line on stderr, with our name on it."""
    err.print(f"[red]isobox:[/] {text}")
