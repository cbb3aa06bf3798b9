"""The driver's libraries on this machine, gathered in a folder of ours that sandboxes get read-only.

Copies, so that what a sandbox maps is what was there when the server looked, whatever a package manager does meanwhile.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from gpu.errors import GpuUnusable

NEEDED: Final = ("libcuda.so.1",)
_WANTED: Final = (
    *NEEDED,
    "libnvidia-ml.so.1",
    "libnvidia-ptxjitcompiler.so.1",
    "libnvidia-nvvm.so.4",
    "libnvidia-gpucomp.so",
    "libcudadebugger.so.1",
)
_LISTED: Final = re.compile(r"^\s+(\S+) \(([^)]*)\) => (\S+)$", re.MULTILINE)


def parse_listing(text: str) -> dict[str, str]:
    """Of the output of `ldconfig -p`: where 64-bit libraries lie, by name, the first of a name. Pure."""
    found: dict[str, str] = {}
    for name, kind, path in _LISTED.findall(text):
        if "x86-64" in kind:
            found.setdefault(name, path)
    return found


def find(folder: Path | None) -> dict[str, Path]:
    """The driver's libraries by name: in a folder that the operator names, else where ldconfig knows them."""
    if folder is not None:
        there = {path.name: path for path in folder.iterdir()}
    else:
        ldconfig = shutil.which("ldconfig", path=f"{os.environ.get('PATH', os.defpath)}:/sbin:/usr/sbin") or "ldconfig"
        done = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False)
        there = {name: Path(path) for name, path in parse_listing(done.stdout).items()}
    found = {name: there[name] for name in there if name.startswith(_WANTED)}
    if missing := [name for name in NEEDED if name not in found]:
        raise GpuUnusable(
            f"the driver's library {missing[0]} is not to be found",
            hint="install the driver's compute libraries, or name their folder with ISOBOX_GPU_LIBRARIES",
        )
    return found


def gather(found: dict[str, Path], target: Path) -> Path:
    """Copy them into a folder, which appears whole: it is named by what was copied."""
    if target.exists():
        return target
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, path in found.items():
        shutil.copyfile(path.resolve(), partial / name)
        (partial / name).chmod(0o755)
        unversioned = name.partition(".so")[0] + ".so"
        if name != unversioned and not (partial / unversioned).exists():
            (partial / unversioned).symlink_to(name)
    partial.rename(target)
    return target
