import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_api.edits import EditMismatch, Replace, apply


def test_edits_see_what_the_ones_before_them_left() -> None:
    assert apply(b"abc", [Replace(b"b", b"xx"), Replace(b"x", b"y", 2)]) == b"ayyc"


@given(st.binary(max_size=60), st.binary(min_size=1, max_size=3), st.binary(max_size=5), st.integers(1, 4))
def test_a_count_is_kept_or_nothing_is_done(contents: bytes, old: bytes, new: bytes, count: int) -> None:
    if contents.count(old) == count:
        assert apply(contents, [Replace(old, new, count)]) == contents.replace(old, new)
    else:
        with pytest.raises(EditMismatch) as error:
            apply(contents, [Replace(old, new, count)])
        assert error.value.found == contents.count(old)
