"""What people and models expect of any Linux machine, and many images lack. Pure.

- `python` is there wherever `python3` is; so are `pip` and `ipython`.
- `pip install` and `npm install --global` work as the default user: no "externally managed" refusal, a place of its
  own in ~/.local, which exists already, so that a Python that runs finds what is installed meanwhile.
- A login shell keeps the PATH that it was given: the image's ENV PATH, and ~/.local/bin.
- Packages whose set-up needs the folders of man pages (every JRE) install, though the pages themselves are left out.
- PAM knows the default user (`su`): it has an entry in the shadow database.
"""

import re
from typing import Final

from fs.treefiles import TreeFiles

USER: Final = "user"
UID: Final = 1000
HOME: Final = f"/home/{USER}"
USER_PROGRAMS: Final = f"{HOME}/.local/bin"
"""Where pip, npm and uv put the programs that the default user installs."""

_PROGRAMS: Final = (b"usr/local/bin", b"usr/bin", b"bin")
_LIBRARIES: Final = (b"usr/local/lib", b"usr/lib")
_PYTHON: Final = re.compile(rb"python3\.\d+")
_MAN_SECTIONS: Final = range(1, 10)
_PROFILE_FIRST: Final = b"isobox_path=$PATH # kept for profile.d/00-isobox.sh\n"
_PROFILE_PART: Final = b"""# A login shell keeps the PATH that it was given; later parts may add to it.
PATH=${isobox_path:-$PATH}
unset isobox_path
"""
_SHADOW: Final = "{}:*:19000:0:99999:7:::"
"""No password fits; the account does not expire."""


def add_conveniences(files: TreeFiles) -> None:
    """Give a tree all of them; a second time changes nothing."""
    home = HOME.strip("/").encode()
    files.ensure_folders(home, [b".local", b"bin"], UID, UID)
    _add_python(files, home)
    _add_npm_prefix(files, home)
    _add_man_folders(files)
    _keep_path(files)
    _add_shadow_entry(files)


def with_user_programs(path: str) -> str:
    """A PATH with the default user's programs at its end, so that they hide none of the image's."""
    return path if USER_PROGRAMS in path.split(":") else f"{path}:{USER_PROGRAMS}"


def with_line(text: str, key: str, line: str) -> str:
    """A colon-separated database with a line for key: its own, if it has one, else this."""
    if any(entry.partition(":")[0] == key for entry in text.splitlines()):
        return text
    return text + ("" if text.endswith("\n") or not text else "\n") + line + "\n"


def _add_python(files: TreeFiles, home: bytes) -> None:
    tree = files.tree
    for name in (b"python", b"pip", b"ipython"):
        if not any(tree.find(programs + b"/" + name) for programs in _PROGRAMS):
            for programs in _PROGRAMS:
                if tree.find(programs + b"/" + name + b"3") is not None:
                    files.link(programs + b"/" + name, name + b"3")
                    break
    for libraries in _LIBRARIES:
        above = tree.find(libraries)
        for name in sorted(above.children if above is not None else ()):
            if not _PYTHON.fullmatch(name):
                continue
            tree.remove(libraries + b"/" + name + b"/EXTERNALLY-MANAGED")
            files.ensure_folders(home, [b".local", b"lib", name, b"site-packages"], UID, UID)


def _add_npm_prefix(files: TreeFiles, home: bytes) -> None:
    has_npm = any(files.tree.find(programs + b"/npm") for programs in _PROGRAMS)
    if has_npm and files.tree.find(home + b"/.npmrc") is None:
        files.write(home + b"/.npmrc", f"prefix={HOME}/.local\n".encode(), 0o644, UID, UID)


def _add_man_folders(files: TreeFiles) -> None:
    if files.tree.find(b"var/lib/dpkg") is not None:
        for section in _MAN_SECTIONS:
            files.ensure_folders(b"usr/share", [b"man", b"man%d" % section])


def _keep_path(files: TreeFiles) -> None:
    profile, parts = files.read(b"etc/profile"), files.tree.find(b"etc/profile.d")
    if profile is None or parts is None or parts.kind != "dir":
        return
    if not profile.startswith(_PROFILE_FIRST):
        files.rewrite(b"etc/profile", _PROFILE_FIRST + profile, 0o644)
    files.write(b"etc/profile.d/00-isobox.sh", _PROFILE_PART, 0o644)


def _add_shadow_entry(files: TreeFiles) -> None:
    database = files.read(b"etc/shadow")
    if database is not None:
        text = with_line(database.decode(errors="surrogateescape"), USER, _SHADOW.format(USER))
        files.rewrite(b"etc/shadow", text.encode(errors="surrogateescape"), 0o640)
