"""The commands that run on the server's machine: the only place of this package that reaches the server's code."""

import importlib.util
import sys

# In a wheel the server's folders lie below isobox_server, off everybody's path (docs/adr/0003-packing.md).
if (packed := importlib.util.find_spec("isobox_server")) is not None and packed.submodule_search_locations:
    sys.path.insert(0, next(iter(packed.submodule_search_locations)))

try:
    from fs.images import ImageStore
    from fs.progress import Progress
    from isolation.guest import build
    from sandbox_api.doctor import Check, checks, swept
    from sandbox_api.serve import serve
    from sandbox_api.settings import Settings
except ModuleNotFoundError as error:
    sys.exit(f"this command needs the server (no module {error.name}): pip install 'isobox[server]'")

__all__ = ["Check", "Progress", "Settings", "checks", "image_store", "serve", "swept"]


def image_store() -> ImageStore:
    """This machine's images."""
    settings = Settings.from_environment()
    cache = settings.cache
    return ImageStore(cache / "images", guest=lambda: build.guest(cache), authorities=settings.ca_bundle)
