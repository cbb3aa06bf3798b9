import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_api.problems import Problem
from sandbox_api.ranges import parse_range


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, None), ("bytes=0-0", (0, 1)), ("bytes=0-", (0, -1)), ("bytes=5-9", (5, 5)), ("bytes=-1", (-1, -1)), ("bytes=-0005", (-5, -1)),
        ("BYTES=0-1", (0, 2)), ("Bytes=0-1", (0, 2)), (" bytes=0-1\t", (0, 2)), ("bytes=0-1,", (0, 2)), ("bytes= , 0-1 ,,", (0, 2)),
        ("bytes=0-" + "9" * 60, (0, (1 << 62) + 1)), ("bytes=" + "9" * 60 + "-", (1 << 62, -1)), ("bytes=-" + "9" * 60, (-(1 << 62), -1)),
        ("items=0-1", None), ("seconds=x", None), ("bytes2=0-1", None), ("x=", None),
    ],
)  # fmt: skip
def test_what_is_asked_for(text: str | None, wanted: tuple[int, int] | None) -> None:
    assert parse_range(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "", "bytes", "bytes=", "bytes=,", "bytes=-", "bytes=-0", "bytes=-000", "bytes=5-2", "bytes=a-b", "bytes=0-1,3-4", "bytes=0-1,x", "bytes=0 - 1", "bytes =0-1",
        "bytes=\xb2-", "bytes=\u0661-", "bytes=+1-2", "bytes=1-2-3", "bytes=--1", "bytes:0-1", "=0-1", "by tes=0-1", "bytes=0x1-", "bytes=1.0-", "bytes=1e3-",
    ],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_range(text)
    assert caught.value.status == 416


@given(st.text(st.sampled_from("bytes=-,0123456789 \t\xb2"), max_size=30))
def test_noise_is_a_range_of_some_bytes_or_refused(text: str) -> None:
    try:
        wanted = parse_range("bytes=" + text)
    except Problem as problem:
        assert problem.status == 416
    else:
        assert wanted is not None
        offset, length = wanted
        assert -(1 << 62) <= offset <= 1 << 62
        assert length == -1 or length > 0
