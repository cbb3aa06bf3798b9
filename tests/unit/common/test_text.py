import json
import math
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import IsoboxError
from common.text import DEPTH_MAX, VALUES_MAX, clean_json, clean_text, errno_text

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=["L", "Cc", "Cs"])) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4) | st.tuples(inner),
    max_leaves=30,
)  # fmt: skip


@given(anything)
def test_whatever_comes_becomes_json_that_any_parser_reads(value: Any) -> None:
    text = json.dumps(clean_json(value), ensure_ascii=False, allow_nan=False).encode()
    assert clean_json(json.loads(text)) == json.loads(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
        lambda inner: st.lists(inner),
        max_leaves=20,
    )
)
def test_what_is_clean_stays_as_it_is(value: Any) -> None:
    assert clean_json(value) == value


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        (math.nan, None), (math.inf, None), (-math.inf, None), (1e308, 1e308), (2**64 - 1, 2**64 - 1), (2**64, str(2**64)), (-(2**63) - 1, str(-(2**63) - 1)),
        ("\ud800", "\ufffd"), ("a\udfffb", "a\ufffdb"), ("\ud83d\ude00", "\U0001f600"),
        ({"\ud800": [True, "\udcff"]}, {"\ufffd": [True, "\ufffd"]}), ("\0\x1b", "\0\x1b"), (b"x", "b'x'"),
    ],
)  # fmt: skip
def test_values_without_a_word_in_json(value: object, cleaned: object) -> None:
    assert clean_json(value) == cleaned


def test_an_integer_that_has_no_text_is_told_by_its_size() -> None:
    assert clean_json([1 << 20_000]) == ["(an integer of 20001 bits)"]


def test_nesting_is_bounded_and_says_so() -> None:
    value: Any = 0
    for _ in range(300):
        value = [value]
    cleaned, depth = clean_json(value), 0
    while isinstance(cleaned, list):
        cleaned, depth = cleaned[0], depth + 1
    assert (depth, cleaned) == (DEPTH_MAX, f"… (nested deeper than {DEPTH_MAX} levels)")


def test_the_count_of_values_is_bounded_and_says_so() -> None:
    for value in ([0] * (VALUES_MAX * 2), dict.fromkeys(map(str, range(VALUES_MAX * 2)), 0)):
        cleaned = clean_json(value)
        assert len(cleaned) == VALUES_MAX
        assert str(cleaned).count("… (more than") == 1
    assert len(clean_json([[0] * VALUES_MAX] * 100)) < 4  # what is left out costs nothing


def test_text_is_cut_with_an_ellipsis() -> None:
    assert clean_text("abcdef", 4) == "abc…"
    assert clean_text("abcd", 4) == "abcd"


@given(st.integers())
def test_any_number_is_told_as_an_errno(number: int) -> None:
    assert errno_text(number)


def test_known_errnos_keep_their_words() -> None:
    assert errno_text(2) == os.strerror(2)
    assert errno_text(10**20) == errno_text(0) == errno_text(-1) == "unknown error"


def test_an_error_is_text_whatever_it_quotes() -> None:
    error = IsoboxError("no such file: \udcff" + "x" * 100_000, hint="see \ud800")
    assert error.detail.startswith("no such file: \ufffd")
    assert len(error.detail) == 8192
    assert error.hint == "see \ufffd"
    str(error).encode()
