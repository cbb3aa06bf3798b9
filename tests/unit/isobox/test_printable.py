import ast
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import isobox.cli
from isobox.cli import say
from isobox.cli.net import line
from isobox.errors import ApiError, ExecFailed
from isobox.functions.errors import RemoteError, Traceback
from isobox.printable import for_terminal, printable, printable_lines

HOSTILE = "\x1b]52;c;ZXZpbA==\x07[red]x[/] :smile: \u202egpj.exe\x9b2J\r\n[/nothing]\ud800"
ANYTHING = st.text(st.characters())


@given(ANYTHING)
def test_one_line_of_printable_characters(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


@given(ANYTHING)
def test_lines_of_printable_characters(text: str) -> None:
    shown = printable_lines(text)
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert printable_lines(shown) == shown


@given(st.text(st.sampled_from("\x1b[0;31mHJ]\x07\n\ta")))
def test_colours_and_nothing_else_may_stay(text: str) -> None:
    shown = printable_lines(text, colours=True)
    for part in shown.split("\x1b")[1:]:
        code, end, _ = part.partition("m")
        assert code.startswith("[")
        assert end
        assert set(code[1:]) <= set("0123456789;:")
    for whole in shown.split("\n"):
        assert "\x1b" not in whole or whole.endswith("\x1b[m")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"), ("\u202eabc", r"\u202eabc"), ("\u2066\u200b\ufeff", r"\u2066\u200b\ufeff"), ("\x9b\x7f\xa0", r"\x9b\x7f\xa0"),
        ("a\tb\r\nc", r"a\tb\r\nc"), ("\ud800\udc80", r"\ud800\udc80"), ("\U000e0041", r"\U000e0041"), ("Grüße 💥 日本", "Grüße 💥 日本"), ("[red]x[/]", "[red]x[/]"),
    ],
)  # fmt: skip
def test_what_is_hidden_is_visible(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_carriage_return_hides_no_line() -> None:
    assert printable_lines("what is there\rhidden\r\nnext") == "what is there\nhidden\nnext"


def test_what_goes_into_a_file_stays_as_it_is() -> None:
    assert for_terminal(HOSTILE, io.StringIO()) == HOSTILE


def test_a_table_of_hostile_names(capsys: pytest.CaptureFixture[str]) -> None:
    say.print_table(("NAME", "SIZE"), [(HOSTILE, "1"), ("日本", "2")])
    told = capsys.readouterr().out
    assert told.count("\n") == 3
    assert told.replace("\n", "").isprintable()
    assert "[red]x[/] :smile:" in told
    say.say(HOSTILE)
    assert capsys.readouterr().out == printable(HOSTILE) + "\n"


def test_markup_in_a_message_neither_styles_nor_crashes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    for terminal in (False, True):
        target = io.StringIO()
        monkeypatch.setattr(
            say,
            "err",
            Console(file=target, force_terminal=terminal, soft_wrap=True, highlight=False, markup=False, emoji=False),
        )
        say.complain(HOSTILE)
        say.note(HOSTILE)
        told = target.getvalue().replace("\x1b[31misobox:\x1b[0m", "isobox:")
        assert told.replace("\n", "").isprintable(), ascii(told)
        assert told.count("[red]x[/] :smile:") == 2


def test_errors_can_be_printed() -> None:
    problem = ApiError({"status": 404, "code": "x", "detail": HOSTILE, "hint": HOSTILE})
    assert problem.detail == HOSTILE  # for programs
    for error in (problem, RemoteError(HOSTILE, HOSTILE), Traceback(HOSTILE)):
        assert str(error).replace("\n", "").isprintable()
    assert issubclass(ExecFailed, type(problem).__mro__[1])


def test_an_audit_record_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say.say(
        line(
            {
                "event": "dns",
                "at": "2026-01-01T00:00:00.000Z",
                "verdict": "refuse",
                "rule": HOSTILE,
                "name": HOSTILE,
                "reason": HOSTILE,
            }
        )
    )
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert told[:-1].isprintable()


def test_no_command_prints_past_the_cleaner() -> None:
    allowed = {"say.py", "stream.py"}  # the cleaner itself, and the output of what a person runs
    found = []
    for path in Path(isobox.cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                path.name not in allowed
                and isinstance(node, ast.Call)
                and ast.unparse(node.func)
                in ("print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stdout.buffer.write")
            ):
                found.append(f"{path.name}: {ast.unparse(node)}")
    assert found == ["main.py: sys.stdout.write(result.stdout)"]
