"""Real interpreters print, we read."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolation.execs import ExecEnd
from sandbox_api.diagnose import limits, node, python, shell
from sandbox_api.models.execs import ExecError


def stderr_of(*argv: str, **options: object) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30, **options).stderr  # type: ignore[call-overload, no-any-return]


def python_error(code: str) -> ExecError | None:
    return python.diagnose(stderr_of(sys.executable, "-c", code))


def test_python_exceptions() -> None:
    found = python_error("def f():\n    try: 1/0\n    except Exception as e: raise ValueError('a\\nb') from e\nf()")
    assert found is not None
    assert (found.name, found.message) == ("ValueError", "a\nb")
    assert [frame.function for frame in found.frames] == ["<module>", "f"]
    found = python_error("class E(Exception): pass\nraise E")
    assert found is not None
    assert (found.name, found.message) == ("E", "")
    found = python_error("import no_such.thing")
    assert found is not None
    assert "pip install no_such" in found.hint
    found = python_error("x = (")
    assert found is not None
    assert (found.name, found.frames[0].source) == ("SyntaxError", "x = (")
    assert python_error("raise SystemExit(3)") is None
    assert python_error("import sys; sys.stderr.write('Error: nothing\\n')") is None


def test_python_frames_with_source_are_read_from_files(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("def g(n):\n    if n: g(n - 1)\n    else: {}['key']\ng(3)\n")
    found = python.diagnose(stderr_of(sys.executable, str(script)))
    assert found is not None
    assert found.name == "KeyError"
    assert len(found.frames) == 5
    assert found.frames[-1].source == "else: {}['key']"


# As Node.js 18 prints it; the interpreter's own levels stand below.
NODE = """/home/user/app.js:3
  return null.x;
              ^

TypeError: Cannot read properties of null (reading 'x')
    at inner (/home/user/app.js:3:15)
    at Object.<anonymous> (/home/user/app.js:6:1)
    at Module._compile (node:internal/modules/cjs/loader:1105:14)
    at node:internal/main/run_main_module:22:47

Node.js v18.19.0
"""


def test_node_errors() -> None:
    found = node.diagnose(NODE)
    assert found is not None
    assert (found.name, found.message) == ("TypeError", "Cannot read properties of null (reading 'x')")
    assert [(f.function, f.line, f.source) for f in found.frames] == [
        ("Object.<anonymous>", 6, None),
        ("inner", 3, "return null.x;"),
    ]


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("no-such-command", "CommandNotFound"),
        ("cat /no/such", "NoSuchFile"),
        ("if", "SyntaxError"),
        ("exit 127", "CommandNotFound"),
        ("exit 126", "NotExecutable"),
    ],
)
def test_shell_failures(script: str, name: str) -> None:
    for program in ("sh", "bash"):
        done = subprocess.run([program, "-c", script], capture_output=True, text=True, check=False)
        found = shell.diagnose(done.stderr, done.returncode)
        assert found is not None, (program, done.stderr)
        assert found.name == name
        assert found.hint


@given(st.text(max_size=600), st.integers(1, 255))
def test_no_output_breaks_a_reader(text: str, code: int) -> None:
    for found in (python.diagnose(text), node.diagnose(text), shell.diagnose(text, code)):
        assert found is None or found.name


@given(
    st.lists(
        st.sampled_from(
            [
                "Traceback (most recent call last):",
                '  File "x", line 3, in f',
                "    1/0",
                "  | E: x",
                "Error: y",
                "    at f (a:1:2)",
                "",
                "sh: 1: x: not found",
            ]
        ),
        max_size=20,
    )
)
def test_no_mixture_of_lines_breaks_a_reader(lines: list[str]) -> None:
    text = "\n".join(lines)
    for found in (python.diagnose(text), node.diagnose(text), shell.diagnose(text, 1)):
        assert found is None or found.name


@given(
    st.sampled_from(["exit", "signal", "failed", "sandbox"]),
    st.integers(0, 255),
    st.integers(0, 133),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "oom", "lost", "requested"]),
)
def test_every_end_has_an_outcome(
    kind: str, code: int, errno: int, timed_out: bool, killed: bool, reason: str | None
) -> None:
    end = ExecEnd(kind, code=code, errno=errno, timed_out=timed_out, killed=killed)  # type: ignore[arg-type]
    outcome = limits.outcome(end, reason)
    error = limits.diagnose(outcome, end, ["prog"], 1.0, "")
    assert (error is None) == (outcome.reason == "exit")


def test_a_program_that_is_not_there_is_told_by_what_people_mean() -> None:
    end = ExecEnd("failed", errno=2)
    absent = limits.outcome(end, None)
    for argv, word in ((["sudo", "ls"], "--user root"), (["/usr/bin/sudo"], "--user root"), (["ls | wc"], "sh -c")):
        error = limits.diagnose(absent, end, argv, None, "")
        assert error is not None
        assert word in error.hint
