"""A pipeline over two images, driven from inside: functions call functions, without network and without a key.

    python -m agent_examples.two_images

Plain Python takes source files apart; another image, which has pandas, makes a table of what was found.
"""

import ast
import sysconfig
from collections.abc import Callable
from pathlib import Path

import isobox

app = isobox.App("two-images")


@app.function(image="python", max_containers=3)
def calls_in(source: str) -> dict[str, int]:
    """How often each name is called in a file."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found[node.func.id] = found.get(node.func.id, 0) + 1
    return found


@app.function(image="data", memory=1024, max_containers=1)
def table(counts: list[dict[str, int]], rows: int) -> list[tuple[str, int, float]]:
    """The names that are called most: how often, and the share of files that do."""
    import pandas

    frame = pandas.DataFrame(counts).fillna(0)
    totals = frame.sum().sort_values(ascending=False, kind="stable").head(rows)
    return [(str(name), int(total), float((frame[name] > 0).mean())) for name, total in totals.items()]


@app.function(image="python", max_containers=1)
def pipeline(sources: list[str], rows: int) -> list[tuple[str, int, float]]:
    """Both steps, one after the other, each in containers of its own."""
    found: list[tuple[str, int, float]] = table.remote(list(calls_in.map(sources)), rows)
    return found


def run(files: int, *, show: Callable[[str], None] = print) -> list[tuple[str, int, float]]:
    """The most-called names in so many modules of the standard library."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:files]
    with app.run():
        found = pipeline.remote([path.read_text(errors="replace") for path in paths], 8)
    for name, total, share in found:
        show(f"{name:16} {total:6} calls, in {share:4.0%} of the files")
    return found


if __name__ == "__main__":
    run(60)
