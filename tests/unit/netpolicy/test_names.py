import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpolicy.names import NameInvalid, canonical, from_wire, matches, pattern

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
NAME = st.builds(lambda labels, last: ".".join([*labels, last]), st.lists(LABEL, max_size=4), st.just("example"))


@given(NAME)
def test_a_canonical_name_stays_as_it_is(name: str) -> None:
    assert canonical(name) == name
    assert canonical(name.upper() + ".") == name
    assert from_wire(tuple(part.encode() for part in name.split("."))) == name


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = canonical(text)
    except NameInvalid:
        return
    assert canonical(name) == name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")


@given(st.lists(st.binary(max_size=70), max_size=5))
def test_any_labels_are_a_name_or_none(labels: list[bytes]) -> None:
    name = from_wire(tuple(labels))
    assert name is None or canonical(name) == name


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", "-a.b", "a-.b", "a b", "a_b.c", "1.2.3.4", "a.0x7f", "a\0.b", "a%2e.b", "x" * 64 + ".a", "::1"],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(NameInvalid):
        canonical(text)


def test_international_names_have_one_form() -> None:
    assert canonical("Bücher.example") == canonical("xn--bcher-kva.example") == "xn--bcher-kva.example"


@given(NAME, NAME)
def test_a_wildcard_matches_what_lies_below_and_nothing_else(below: str, base: str) -> None:
    assert matches(f"*.{base}", f"{below}.{base}")
    assert not matches(f"*.{base}", base)
    assert not matches(f"*.{base}", f"x{base}")
    assert not matches(base, f"{below}.{base}")
    assert matches(base, base)


@pytest.mark.parametrize(
    "text", ["*", "*.", "**.a.example", "a.*.example", "*.com", "*.co.uk", "*a.example.com", "*.*.com"]
)
def test_wildcards_that_are_too_wide(text: str) -> None:
    with pytest.raises(NameInvalid):
        pattern(text)


def test_a_wildcard_below_a_registered_name() -> None:
    assert pattern("*.Example.COM") == "*.example.com"
