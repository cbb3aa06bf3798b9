"""The base images: Debian or Ubuntu, whichever this machine is, from the mirror its own apt sources name."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fs.errors import ImageError
from fs.oci.layers import Sink, apply
from fs.programs import output_of
from fs.tree import Limits, Tree


@dataclass(frozen=True, slots=True)
class Base:
    """A recipe: a minimal system and these packages."""

    packages: tuple[str, ...]
    about: str


BASES: Final = {
    "base": Base(("ca-certificates", "curl"), "a minimal system"),
    "python": Base(
        ("python3", "python3-pip", "python3-venv", "git", "curl", "ca-certificates", "procps"), "python3, pip and git"
    ),
    "data": Base(
        (
            "python3",
            "python3-pip",
            "python3-venv",
            "python3-ipython",
            "python3-numpy",
            "python3-pandas",
            "python3-matplotlib",
            "git",
            "curl",
            "ca-certificates",
            "procps",
        ),
        "python with IPython, numpy, pandas and matplotlib",
    ),
    "node": Base(("nodejs", "npm", "git", "curl", "ca-certificates", "procps"), "node, npm and git"),
}
_UNREAD: Final = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*")
_SOURCES: Final = (
    "/etc/apt/sources.list.d/debian.sources",
    "/etc/apt/sources.list.d/ubuntu.sources",
    "/etc/apt/sources.list",
)


def apt_sources() -> Path:
    """The file with this machine's own distribution in it; ImageError if there is none."""
    for name in _SOURCES:
        path = Path(name)
        if path.exists() and any(line.startswith(("deb ", "Types:")) for line in path.read_text().splitlines()):
            return path
    raise ImageError(
        "this machine has no apt sources to build a base image from",
        hint="import a root file system instead: isobox image import NAME PATH",
    )


def build(base: Base, tree: Tree, sink: Sink) -> None:
    """Install a base into a tree."""
    release = platform.freedesktop_os_release()
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(base.packages)}"]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in _UNREAD]
    argv += ['--aptopt=APT::Install-Recommends "false"', release.get("VERSION_CODENAME", "stable"), "-"]
    with output_of([*argv, str(apt_sources())], deed="build the base image", package="mmdebstrap") as archive:
        apply(archive, tree, sink, limits=Limits(), keep_setuid=True, layered=False)
    for name in (b"var/lib/apt/lists", b"var/cache/apt/archives", b"var/log"):
        for path, node in list(tree.walk()):
            if node.kind == "file" and path.startswith(name + b"/"):
                tree.remove(path)
