"""A function as it is sent: where it begins, and an archive of the code that it takes.

One that lies in a module is imported inside, by its name; the module's own files go along (of a package, all of it).
One of a script, a notebook or another function's is pickled by value (cloudpickle).
"""

import hashlib
import importlib.util
import io
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from isobox.functions import codec
from isobox.functions.errors import NotSerializable

_HERE: Final = Path(__file__).parent
_SOURCES_MAX: Final = 16 << 20
_PICKLE: Final = "function.pickle"


@dataclass(frozen=True, slots=True)
class Bundle:
    """The archive (tar, the same bytes for the same code) and what loads the function from it."""

    archive: bytes
    entry: dict[str, Any]

    @property
    def digest(self) -> str:
        """What it is uploaded as."""
        return f"sha256:{hashlib.sha256(self.archive).hexdigest()}"


def bundle(function: Callable[..., Any]) -> Bundle:
    """Of a plain function or class; NotSerializable with the mend."""
    files = {
        "isobox_inside/__init__.py": b"",
        "isobox_inside/codec.py": (_HERE / "codec.py").read_bytes(),
        "isobox_inside/marks.py": (_HERE / "marks.py").read_bytes(),
        "isobox_inside/web.py": (_HERE / "inside/web.py").read_bytes(),
        "isobox_inside/reach.zip": _reach(),
        "isobox/__init__.py": (_HERE / "inside/entry.py").read_bytes(),
    }
    entry: dict[str, Any] = {"python": list(sys.version_info[:2])}
    module = sys.modules.get(function.__module__)
    if module is not None and function.__module__ != "__main__" and "<locals>" not in function.__qualname__:
        entry |= {"module": function.__module__, "name": function.__qualname__}
        files |= sources(function.__module__, getattr(module, "__file__", None))
    else:
        entry["pickle"] = _PICKLE
        files[_PICKLE] = _pickled(function)
    files |= _cloudpickle()
    return Bundle(_packed(files), entry)


def _pickled(function: Callable[..., Any]) -> bytes:
    dumps = codec.pickler()
    if dumps is None:
        raise NotSerializable(
            f"{function.__qualname__} lies in a script, which takes cloudpickle to send:"
            " pip install 'isobox[functions]', or put the function into a module"
        )
    try:
        return dumps(function)
    except Exception as error:  # whatever its own objects raise
        raise NotSerializable(
            f"{function.__qualname__} cannot be sent: {error}; what it refers to has to be made inside it, or passed"
        ) from error


def sources(name: str, file: str | None) -> dict[str, bytes]:
    """The files of a module, or of the whole package that it is in; none of what is installed: images have that."""
    if file is None:
        return {}
    path, parts = Path(file).resolve(), name.split(".")
    installed = [Path(sysconfig.get_path(each)).resolve() for each in ("stdlib", "purelib", "platlib")]
    if any(path.is_relative_to(each) for each in installed):
        return {}
    depth = len(parts) if path.name == "__init__.py" else len(parts) - 1
    root = path.parents[depth] if path.name == "__init__.py" else path.parents[len(parts) - 1]
    if depth == 0:
        return {path.name: path.read_bytes()}
    found: dict[str, bytes] = {}
    size = 0
    for each in sorted((root / parts[0]).rglob("*.py")):
        data = each.read_bytes()
        size += len(data)
        if size > _SOURCES_MAX:
            raise NotSerializable(f"the package {parts[0]} has more than {_SOURCES_MAX >> 20} MiB of source")
        found[each.relative_to(root).as_posix()] = data
    return found


@cache
def _reach() -> bytes:
    """What calls other containers from inside one: this package's own modules, and stand-ins for some."""
    shared = (
        "calls",
        "config",
        "errors",
        "printable",
        *(f"functions/{each}" for each in ("calls", "cls", "errors", "objects", "remote")),
    )
    files = {f"{each}.py": (_HERE.parent / f"{each}.py").read_bytes() for each in shared}
    files["transport.py"] = (_HERE / "inside/transport.py").read_bytes()
    files["functions/named.py"] = (_HERE / "inside/named.py").read_bytes()
    files["functions/__init__.py"] = b""
    for each in ("codec", "marks"):  # they are there already
        alias = f"import sys\nimport isobox_inside.{each}\nsys.modules[__name__] = isobox_inside.{each}\n"
        files[f"functions/{each}.py"] = alias.encode()
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:  # as they are: zlib is one import less inside
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(f"isobox/{name}"), data)
    return raw.getvalue()


def _cloudpickle() -> dict[str, bytes]:
    """Its sources, so that the image need not have it."""
    spec = importlib.util.find_spec("cloudpickle")
    if spec is None or spec.origin is None:
        return {}
    folder = Path(spec.origin).parent
    return {f"cloudpickle/{each.name}": each.read_bytes() for each in sorted(folder.glob("*.py"))}


def _packed(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return raw.getvalue()
