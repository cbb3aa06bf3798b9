"""Folders of a sandbox that the host serves: mounted inside, spoken to through PID 1 (guest/hold.c, guest/mount.c).

The program that holds such a mount is PID 1's child, because a restore ends whatever the host's own calls started; it
listens at an abstract address inside, by which whoever serves the folder is connected to it, again after each restart
and in each copy.
"""

import errno

from common.text import errno_text
from isolation.errors import IsolationError
from isolation.files import operate
from isolation.sandbox import Sandbox


class MountFailed(IsolationError):
    """The folder could not be mounted."""


async def mount(sandbox: Sandbox, address: str, path: str) -> None:
    """Mount a folder at path, which is made, and have it held at the address; MountFailed."""
    async with operate(sandbox.link, "hold", address, user="0", allow_root=True) as holding:
        await holding.result()
    sandbox.serves_folders = True
    if number := await sandbox.mount_folder(address, path):
        hint = "choose another path" if number in (errno.ENOTDIR, errno.EROFS, errno.EACCES, errno.ELOOP) else ""
        raise MountFailed(f"nothing can be mounted at {path}: {errno_text(number)}", hint=hint)
