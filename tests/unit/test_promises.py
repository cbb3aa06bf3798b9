"""docs/security.md names a test for each promise: each of them is there, and each promise has one."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (?P<promise>[^|]+) \| (?P<tests>[^|]+) \|$")
TEST = re.compile(r"`(?P<path>tests/[\w/]+\.py)?(?:::(?P<name>\w+))?`")


def rows() -> list[tuple[str, str]]:
    """Each promise with the tests that are said to prove it."""
    matches = [ROW.match(line) for line in (ROOT / "docs/security.md").read_text().splitlines()]
    cells = [(match["promise"].strip(), match["tests"].strip()) for match in matches if match is not None]
    return [(promise, tests) for promise, tests in cells if promise != "Promise" and set(promise) != {"-"}]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("promise", "tests"), rows(), ids=[promise[:60] for promise, _ in rows()])
def test_each_promise_names_tests_that_are_there(promise: str, tests: str) -> None:
    path = None
    named = list(TEST.finditer(tests))
    assert named, f"no test is named for: {promise}"
    for match in named:
        path = ROOT / match["path"] if match["path"] else path
        assert path is not None, f"the first test of a row needs its file: {tests}"
        names = names_in(path)
        assert names if match["name"] is None else match["name"] in names, f"{path.name} has no {match['name']}"
