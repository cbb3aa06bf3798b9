"""The base images: Debian or Ubuntu, whichever this machine is, from the mirror its own apt sources name."""

import hashlib
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from fs import extras
from fs.errors import ImageError
from fs.oci.layers import Sink, apply
from fs.programs import output_of
from fs.tree import Limits, Tree


@dataclass(frozen=True, slots=True)
class Base:
    """A recipe: a minimal system, these packages, and these extras (see `fs.extras`)."""

    packages: tuple[str, ...]
    about: str
    extras: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: {"LANG": "C.UTF-8"})


_COMMON: Final = ("ca-certificates", "curl", "git", "procps")
_PYTHON: Final = ("python3", "python3-pip", "python3-venv")
_NODE: Final = ("libatomic1", "libstdc++6")
"""What Node's own binaries need: npm's, and those that Playwright brings along."""
BASES: Final = {
    "base": Base(("ca-certificates", "curl"), "a minimal system"),
    "python": Base((*_PYTHON, *_COMMON), "python3, pip and git"),
    "data": Base(
        (*_PYTHON, "python3-ipython", "python3-numpy", "python3-pandas", "python3-matplotlib", *_COMMON),
        "python with IPython, numpy, pandas and matplotlib",
    ),
    # Python: npm builds native modules with it.
    "node": Base(("python3", *_COMMON, *_NODE), "node, npm and git", extras=("node",)),
    "agent": Base(
        (
            *_PYTHON,
            *_COMMON,
            *_NODE,
            "build-essential",
            "ipython3",
            "jq",
            "less",
            "openssh-client",
            "python3-dev",
            "ripgrep",
            "tmux",
            "unzip",
            "vim",
            "wget",
            "zip",
        ),
        "what coding agents type: python, node, a compiler, git, ripgrep, jq, uv, tmux, vim",
        extras=("node", "pip:uv"),
    ),
    "browser": Base(
        (
            *_PYTHON,
            *_COMMON,
            *_NODE,
            "chromium",
            "fonts-dejavu-core",
            "fonts-freefont-ttf",
            "fonts-liberation",
            "fonts-noto-color-emoji",
            "fonts-wqy-zenhei",
        ),
        "Chromium, fonts, and Playwright for Python and Node",
        extras=("node", "pip:playwright", "npm:playwright", "chromium-for-playwright"),
        env={
            "LANG": "C.UTF-8",
            "PLAYWRIGHT_BROWSERS_PATH": extras.BROWSERS,
            "PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD": "1",
            "PLAYWRIGHT_SKIP_VALIDATE_HOST_REQUIREMENTS": "1",
        },
    ),
}
_UNREAD: Final = (
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    # Says that pip must install nothing beside the distribution's packages: a sandbox is thrown away.
    "/usr/lib/python3*/EXTERNALLY-MANAGED",
)
_SETTINGS: Final = "etc/dpkg/dpkg.cfg.d/99mmdebstrap"
"""Where mmdebstrap leaves what it was told of paths: no image of another maker has it."""

_SOURCES: Final = (
    "/etc/apt/sources.list.d/debian.sources",
    "/etc/apt/sources.list.d/ubuntu.sources",
    "/etc/apt/sources.list",
)


@cache
def recipe(name: str) -> str:
    """Return a short digest of all that says how a base is built: images record it, and are built anew by another."""
    base = BASES[name]
    how = Path(extras.__file__).read_text() if base.extras else ""
    said = [base.packages, base.extras, sorted(base.env.items()), _UNREAD, how]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def is_built_here(tree: Tree) -> bool:
    """Say whether `build` made a tree."""
    return tree.find(_SETTINGS.encode()) is not None


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
    if base.extras:
        program = [sys.executable, str(Path(extras.__file__).absolute())]
        argv.append(f'--customize-hook={shlex.join(program)} "$1" {shlex.join(base.extras)}')
    argv += ['--aptopt=APT::Install-Recommends "false"', release.get("VERSION_CODENAME", "stable"), "-"]
    with output_of([*argv, str(apt_sources())], deed="build the base image", package="mmdebstrap") as archive:
        apply(archive, tree, sink, limits=Limits(), keep_setuid=True, layered=False)
    for name in (b"var/lib/apt/lists", b"var/cache/apt/archives", b"var/log"):
        for path, node in list(tree.walk()):
            if node.kind == "file" and path.startswith(name + b"/"):
                tree.remove(path)
