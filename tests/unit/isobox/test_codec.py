import datetime
import decimal
import io
import json
import pickle
import uuid
from typing import Any

import numpy
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from isobox.functions import codec

SIMPLE = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.complex_numbers(allow_nan=False)
    | st.datetimes(timezones=st.just(datetime.UTC)) | st.dates() | st.times() | st.timedeltas() | st.uuids()
    | st.decimals(allow_nan=False)
)  # fmt: skip
HASHABLE = st.integers() | st.text() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SIMPLE,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(HASHABLE, inner)
        | st.sets(HASHABLE)
        | st.frozensets(HASHABLE)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_what_can_be_sent_comes_back_as_it_was(value: Any) -> None:
    found = codec.decode(codec.encode(value))
    assert found == value
    assert type(found) is type(value)


@given(st.sampled_from([b"j", b"n", b"n\x93NUMPY\x01\x00", b"p", b""]), st.binary(max_size=60))
def test_what_nobody_of_ours_wrote(kind: bytes, data: bytes) -> None:
    try:
        codec.decode(kind + data)
    except ValueError:
        return


MARKS = ["array", "no such mark", *codec._MARKED]
MARKED = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.just("2020-01-01"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["$", "v", "a"]), inner)
        | st.builds(lambda name, value: {"$": name, "v": value}, st.sampled_from(MARKS), inner)
    ),
    max_leaves=12,
)


@given(MARKED)
def test_marks_that_nobody_of_ours_wrote(value: Any) -> None:
    try:
        codec.decode(b"j" + json.dumps(value).encode())
    except ValueError:
        return


@given(arrays.arrays(arrays.scalar_dtypes() | arrays.array_dtypes(), arrays.array_shapes(min_side=0)), st.booleans())
def test_arrays_come_back_as_they_were(value: Any, by_columns: bool) -> None:
    value = numpy.asarray(value, order="F" if by_columns else "C")
    try:
        codec.encode(value)
    except codec.Unsafe:  # names of fields that are not Latin-1
        reject()
    for found in (codec.decode(codec.encode(value)), codec.decode(codec.encode([value]))[0]):
        assert found.dtype == value.dtype
        assert found.shape == value.shape
        assert found.tobytes() == value.tobytes()
        assert found.flags.writeable


def test_an_array_takes_no_more_memory_than_what_was_sent() -> None:
    out = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(out, {"shape": (1 << 40,), "fortran_order": False, "descr": "<f8"})
    with pytest.raises(ValueError, match="promises"):
        codec.decode(b"n" + out.getvalue() + b"12345678")


def test_numbers_of_numpy_come_back_as_python_s_and_objects_are_not_sent() -> None:
    assert codec.decode(codec.encode({"x": numpy.float64(1.5)})) == {"x": 1.5}
    with pytest.raises(codec.Unsafe):
        codec.encode(numpy.array([object()]))


def test_an_array_where_numpy_is_missing_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = codec.encode(numpy.zeros(3))
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    with pytest.raises(ValueError, match="pip install numpy"):
        codec.decode(data)


def test_marks_of_the_values_own_are_no_marks() -> None:
    tricky = {"$": "uuid", "v": "no"}
    assert codec.decode(codec.encode([tricky])) == [tricky]


@pytest.mark.parametrize("value", [object(), lambda: 1, {1: object()}, Exception()])
def test_what_cannot_be_sent_says_so(value: Any) -> None:
    with pytest.raises(codec.Unsafe):
        codec.encode(value)
    with pytest.raises(TypeError, match='trust="pickle"'):
        codec.result(value, "safe")


def test_a_value_that_holds_itself() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(codec.Unsafe):
        codec.encode(value)


class Canary:
    opened = False

    def __reduce__(self) -> Any:
        return _open, ()


def _open() -> str:
    Canary.opened = True
    return "opened"


def test_a_pickle_is_opened_for_those_alone_who_asked() -> None:
    data = b"p" + pickle.dumps(Canary())
    with pytest.raises(ValueError, match="another kind"):
        codec.decode_result(data, "safe")
    assert codec.decode_exception("builtins.ValueError", data, "safe") is None
    assert not Canary.opened
    assert codec.decode_result(data, "pickle") == "opened"


class Mine(Exception):
    def __init__(self) -> None:
        raise AssertionError("it runs nothing of the exception's own")


def test_exceptions_come_back_as_their_type_where_it_is_known_here() -> None:
    sent = codec.exception(KeyError("a", 1), "safe")
    found = codec.decode_exception("builtins.KeyError", sent, "safe")
    assert isinstance(found, KeyError)
    assert found.args == ("a", 1)
    mine = codec.decode_exception(f"{Mine.__module__}.Mine", codec.encode([7]), "safe")
    assert type(mine).__name__ == "Mine"
    assert mine is not None
    assert mine.args == (7,)
    for name in ("builtins.SystemExit", "builtins.print", "antigravity.X", "no_such_module.X", "X"):
        assert codec.decode_exception(name, codec.encode([]), "safe") is None
    assert codec.exception(ValueError(object()), "safe") is None


def test_arguments_of_any_kind() -> None:
    data = codec.encode_arguments((1,), {"x": decimal.Decimal("1.5")}, None)
    assert codec.arguments(data) == ((1,), {"x": decimal.Decimal("1.5")})
    by_pickle = codec.encode_arguments((uuid.SafeUUID.safe,), {}, pickle.dumps)
    assert codec.arguments(by_pickle) == ((uuid.SafeUUID.safe,), {})
    with pytest.raises(codec.Unsafe):
        codec.encode_arguments((object(),), {}, None)
