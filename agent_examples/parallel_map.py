"""A parallel map over a data set that Python itself ships: the modules that are the hardest to read.

    python -m agent_examples.parallel_map

Each source file is an input; containers count lines, functions and the deepest nesting, and print nothing of the code.
"""

import argparse
import ast
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import isobox

app = isobox.App("parallel-map")


def depth(node: ast.AST, level: int = 0) -> int:
    """How deeply blocks are nested."""
    inner = level + isinstance(node, ast.For | ast.While | ast.If | ast.With | ast.Try)
    return max([inner, *(depth(each, inner) for each in ast.iter_child_nodes(node))])


@app.function(cpu=1, memory=512, max_containers=4, timeout=60, retries=1)
def measure(name: str, source: str) -> dict[str, Any]:
    """Figures of one file."""
    tree = ast.parse(source)
    functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    longest = max((each.end_lineno - each.lineno + 1 for each in functions if each.end_lineno), default=0)
    return {
        "name": name,
        "lines": source.count("\n"),
        "functions": len(functions),
        "longest": longest,
        "depth": depth(tree),
    }


def run(files: int, *, show: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Measure so many modules of the standard library, the hardest first."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:files]
    with app.run():
        inputs = ((path.name, path.read_text(errors="replace")) for path in paths)
        found = list(measure.starmap(inputs, order_outputs=False))
    found.sort(key=lambda each: (each["depth"], each["longest"]), reverse=True)
    for each in found[:10]:
        show("{name:24} {lines:6} lines  {functions:4} functions  longest {longest:4}  depth {depth}".format(**each))
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=200)
    run(parser.parse_args().files)


if __name__ == "__main__":
    main()
