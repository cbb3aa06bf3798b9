"""Values as bytes, the same program outside and inside (where it is `isobox_inside.codec`): the standard library alone.

The first byte says how the rest is written: `j` JSON with marks for what JSON has not, `b` bytes, `n` a NumPy array
(never with objects in it), `p` a pickle. Nothing of the first three runs code when it is read. A pickle does: what
comes back from a sandbox is unpickled only where the caller asked for that (`trust="pickle"`).
"""

from __future__ import annotations

# Inside, every import takes milliseconds before the first input can begin: what few values need is imported for them.
import binascii
import builtins
import importlib
import io
import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MARK = "$"
_DEPTH_MAX = 200


class Unsafe(TypeError):
    """A value that only a pickle could hold."""


def encode(value: Any) -> bytes:
    """As safe bytes; Unsafe for what cannot be."""
    if isinstance(value, bytes):
        return b"b" + value
    if _is_array(value):
        return b"n" + _array_bytes(value)
    try:
        return b"j" + json.dumps(_plain(value, 0), allow_nan=False).encode()
    except RecursionError as error:
        raise Unsafe("it is nested too deeply, or holds itself") from error


def decode(data: bytes) -> Any:
    """What `encode` wrote; ValueError for anything else."""
    kind, rest = data[:1], data[1:]
    if kind == b"b":
        return rest
    if kind == b"n":
        return _array(rest)
    if kind == b"j":
        try:
            return _rich(json.loads(rest), 0)
        except (LookupError, TypeError, ArithmeticError, RecursionError, AttributeError) as error:
            raise ValueError(f"a value that cannot be read: {error}") from error
    raise ValueError("a value of another kind")


def _plain(value: Any, depth: int) -> Any:
    if depth > _DEPTH_MAX:
        raise Unsafe("it is nested too deeply, or holds itself")
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if value - value == 0 else {_MARK: "float", "v": repr(value)}
    if kind is list:
        return [_plain(each, depth + 1) for each in value]
    if kind is dict and all(type(key) is str for key in value) and _MARK not in value:
        return {key: _plain(each, depth + 1) for key, each in value.items()}
    if (name := _TYPES.get(f"{kind.__module__}.{kind.__qualname__}")) is not None:
        return {_MARK: name, "v": _plain(_MARKED[name][0](value), depth + 1)}
    if _is_array(value):
        return {_MARK: "array", "v": written(_array_bytes(value))}
    if kind.__module__ == "numpy" and hasattr(value, "item") and hasattr(value, "dtype"):
        return _plain(value.item(), depth + 1)
    raise Unsafe(f"a {kind.__module__}.{kind.__qualname__} cannot be sent safely")


def _rich(value: Any, depth: int) -> Any:
    if depth > 2 * _DEPTH_MAX:
        raise ValueError("a value that is nested too deeply")
    if isinstance(value, list):
        return [_rich(each, depth + 1) for each in value]
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {key: _rich(each, depth + 1) for key, each in value.items()}
    inner = _rich(value["v"], depth + 1)
    if value[_MARK] == "array":
        return _array(binascii.a2b_base64(inner))
    return _MARKED[value[_MARK]][1](inner)


def _from_iso(name: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        import datetime

        return getattr(datetime, name).fromisoformat(text)

    return read


def _delta(parts: list[int]) -> Any:
    import datetime

    return datetime.timedelta(days=parts[0], seconds=parts[1], microseconds=parts[2])


def _decimal(text: str) -> Any:
    import decimal

    return decimal.Decimal(text)


def _uuid(text: str) -> Any:
    import uuid

    return uuid.UUID(text)


def written(data: bytes) -> str:
    """Bytes as text."""
    return binascii.b2a_base64(data, newline=False).decode()


_MARKED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "float": (repr, float),
    "tuple": (list, tuple),
    "set": (list, set),
    "frozenset": (list, frozenset),
    "dict": (lambda value: [list(pair) for pair in value.items()], dict),
    "bytes": (written, binascii.a2b_base64),
    "complex": (lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "datetime": (lambda value: value.isoformat(), _from_iso("datetime")),
    "date": (lambda value: value.isoformat(), _from_iso("date")),
    "time": (lambda value: value.isoformat(), _from_iso("time")),
    "timedelta": (lambda value: [value.days, value.seconds, value.microseconds], _delta),
    "decimal": (str, _decimal),
    "uuid": (str, _uuid),
}
"""How what JSON has not is written and read."""

_TYPES = {
    "builtins.tuple": "tuple",
    "builtins.set": "set",
    "builtins.frozenset": "frozenset",
    "builtins.dict": "dict",
    "builtins.bytes": "bytes",
    "builtins.bytearray": "bytes",
    "builtins.complex": "complex",
    "datetime.datetime": "datetime",
    "datetime.date": "date",
    "datetime.time": "time",
    "datetime.timedelta": "timedelta",
    "decimal.Decimal": "decimal",
    "uuid.UUID": "uuid",
}


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and not value.dtype.hasobject


def _array_bytes(value: Any) -> bytes:
    import numpy

    out = io.BytesIO()
    try:
        numpy.lib.format.write_array(out, value, version=(1, 0), allow_pickle=False)
    except ValueError as error:
        raise Unsafe(f"an array whose fields cannot be described: {error}") from error
    return out.getvalue()


def _array(data: bytes) -> Any:
    """ValueError for what is no array of exactly these bytes: its header says how much memory is asked for."""
    try:
        import numpy
    except ImportError:
        raise ValueError("it is a NumPy array, and NumPy is not installed here: pip install numpy") from None
    formats = numpy.lib.format
    file = io.BytesIO(data)
    try:
        if formats.read_magic(file) != (1, 0):
            raise ValueError("it is written in another version")
        shape, by_columns, dtype = formats.read_array_header_1_0(file)
        size = dtype.itemsize
        for length in shape:
            size *= length
        if dtype.hasobject or min(shape, default=0) < 0 or size != len(data) - file.tell():
            raise ValueError("its header promises something else than what follows")
        return numpy.ndarray(shape, dtype, bytearray(data[file.tell() :]), order="F" if by_columns else "C")
    except Exception as error:  # of a parser of numpy's: whatever it met, this is no array
        raise ValueError(f"an array that cannot be read: {error}") from error


# ---- arguments and results


def encode_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], dumps: Callable[[Any], bytes] | None) -> bytes:
    """Arguments, by dumps (cloudpickle's) where they cannot be written safely; Unsafe without it."""
    try:
        return encode([list(args), kwargs])
    except Unsafe:
        if dumps is None:
            raise
        return b"p" + dumps((args, kwargs))


def arguments(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same inside: whoever calls a function runs code there anyhow."""
    args, kwargs = _unpickled(data[1:]) if data[:1] == b"p" else decode(data)
    return tuple(args), kwargs


def result(value: Any, trust: str) -> bytes:
    """What a function returns; TypeError with the mend for what may not be sent as it is."""
    try:
        return encode(value)
    except Unsafe as error:
        if trust == "pickle":
            return b"p" + _pickled(value)
        raise TypeError(
            f"{error}: return numbers, text, lists, dicts, bytes or NumPy arrays, or let the caller trust what comes"
            ' back with trust="pickle"'
        ) from None


def pickler() -> Callable[[Any], bytes] | None:
    """Cloudpickle's dumps, if there is one."""
    try:
        import cloudpickle
    except ImportError:
        return None
    dumps: Callable[[Any], bytes] = cloudpickle.dumps
    return dumps


def _pickled(value: Any) -> bytes:
    if (dumps := pickler()) is not None:
        return dumps(value)
    import pickle  # where the caller trusts it

    return pickle.dumps(value)


def _unpickled(data: bytes) -> Any:
    """Of whom the caller trusts, or the caller's own."""
    import pickle

    return pickle.loads(data)  # noqa: S301


def decode_result(data: bytes, trust: str) -> Any:
    """What came back; ValueError for a pickle that nobody asked for."""
    if data[:1] == b"p":
        if trust != "pickle":
            raise ValueError('a value of another kind: it is pickled, and whoever called did not say trust="pickle"')
        return _unpickled(data[1:])
    return decode(data)


def exception(error: BaseException, trust: str) -> bytes | None:
    """An exception as far as it can be sent: its arguments, or as a pickle; None where not even that."""
    if trust == "pickle":
        try:
            return b"p" + _pickled(error)
        except Exception:
            return None
    try:
        return encode(list(error.args))
    except Unsafe:
        return None


def decode_exception(type_name: str, data: bytes | None, trust: str) -> Exception | None:
    """The exception again, where its type is one of Python's or of a module that is imported here; else None.

    Nothing is imported for it, and its __init__ does not run: the name is a stranger's word.
    """
    if data is None:
        return None
    try:
        if data[:1] == b"p":
            found = _unpickled(data[1:]) if trust == "pickle" else None
            return found if isinstance(found, Exception) else None
        args = decode(data)
    except Exception:
        return None
    module, _, name = type_name.rpartition(".")
    if module == "isobox.errors":  # what the server refused to the container was not refused to us
        return None
    where = builtins if module == "builtins" else sys.modules.get(module)
    kind = getattr(where, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or not isinstance(args, list):
        return None
    try:
        made = kind.__new__(kind, *args)
    except Exception:
        return None
    made.args = tuple(args)
    return made


# ---- the function itself, inside


def load(entry: dict[str, Any], folder: str) -> Any:
    """What an entry names, ready to be called (`marks.Loaded`)."""
    from isobox_inside import marks

    if tuple(entry.get("python", sys.version_info[:2])) != sys.version_info[:2] and "pickle" in entry:
        here, there = ".".join(map(str, sys.version_info[:2])), ".".join(map(str, entry["python"]))
        raise RuntimeError(
            f"the function was pickled by Python {there}, and the image has {here}: use an image with Python {there},"
            " or define the function in a module of its own, which is imported and not pickled"
        )
    if "pickle" in entry:
        with open(f"{folder}/{entry['pickle']}", "rb") as file:
            found = _unpickled(file.read())
    else:
        found = importlib.import_module(entry["module"])
        for part in entry["name"].split("."):
            found = getattr(found, part)
    parameters = decode(binascii.a2b_base64(entry["parameters"])) if "parameters" in entry else {}
    return marks.Loaded(getattr(found, "isobox_local", found), parameters)
