"""The commands that run on the server's machine: the only place of this package that reaches the server's code."""

import importlib.util
import sys
from collections.abc import Iterator

# In a wheel the server's folders lie below isobox_server, off everybody's path (docs/adr/0003-packing.md).
if (packed := importlib.util.find_spec("isobox_server")) is not None and packed.submodule_search_locations:
    sys.path.insert(0, next(iter(packed.submodule_search_locations)))

try:
    from fs.bases import BASES
    from fs.images import ImageStore
    from isolation.guest import build
    from sandbox_api.doctor import Check, checks
    from sandbox_api.serve import serve
    from sandbox_api.settings import Settings
except ModuleNotFoundError as error:
    sys.exit(f"this command needs the server (no module {error.name}): pip install 'isobox[server]'")

__all__ = ["Check", "Settings", "checks", "image_rows", "image_store", "serve"]


def image_store() -> ImageStore:
    """This machine's images."""
    cache = Settings.from_environment().cache
    return ImageStore(cache / "images", init=lambda: build.binary(cache))


def image_rows() -> Iterator[tuple[str, str, str, str]]:
    """(name, size, digest, about) of what is there and of what can be built."""
    there = {image.name: image for image in image_store().all()}
    for name in sorted({*there, *BASES}):
        about = BASES[name].about if name in BASES else "imported"
        if name in there:
            yield name, f"{there[name].size >> 20} MiB", there[name].digest[7:19], about
        else:
            yield name, "", "", f"{about} (built on first use)"
