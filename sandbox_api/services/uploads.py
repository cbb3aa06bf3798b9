"""Files that clients send ahead of a build: by digest, a tenant's own, kept for a day."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from common.ids import new_id
from isolation.errors import DiskFull
from sandbox_api.problems import Problem

_KEPT_S: Final = 86400.0
_PIECE: Final = 1 << 20
_MAX: Final = 8 << 30


class Uploads:
    """A folder of files; a file is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, tenant: str, digest: str) -> Path:
        whose = hashlib.sha256(tenant.encode()).hexdigest()[:16]
        return self._folder / whose / digest.removeprefix("sha256:")

    def has(self, tenant: str, digest: str) -> bool:
        """Whether it was sent; it is kept for another day."""
        try:
            os.utime(self._path(tenant, digest))
        except FileNotFoundError:
            return False
        return True

    async def put(self, tenant: str, digest: str, contents: AsyncIterator[bytes]) -> None:
        """Take one in; 422 if it is not what its digest says."""
        target = self._path(tenant, digest)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = target.with_name(f"{new_id('req')}.partial")
        found, size = hashlib.sha256(), 0
        try:
            with partial.open("xb") as file:
                async for piece in contents:
                    size += len(piece)
                    if size > _MAX:
                        raise Problem(413, "upload_too_large", f"uploads are of at most {_MAX >> 30} GiB")
                    found.update(piece)
                    await asyncio.to_thread(file.write, piece)
            if f"sha256:{found.hexdigest()}" != digest:
                raise Problem(422, "digest_mismatch", "the body is not what its digest says", hint="send it again")
            os.replace(partial, target)
        except OSError as error:
            raise DiskFull(f"the upload cannot be kept: {error.strerror}", hint="see the disk") from error
        finally:
            partial.unlink(missing_ok=True)

    async def read(self, tenant: str, digest: str) -> AsyncIterator[bytes]:
        """Its bytes; 404 if it was not sent, or too long ago."""
        try:
            file = self._path(tenant, digest).open("rb")
        except FileNotFoundError:
            raise Problem(
                404, "upload_not_found", f"{digest[:19]} was not uploaded", hint=f"PUT /v1/uploads/{digest[:19]}… first"
            ) from None
        with file:
            while piece := await asyncio.to_thread(file.read, _PIECE):
                yield piece

    def expire(self) -> None:
        """Delete those that nobody asked for in a day."""
        for path in self._folder.glob("*/*"):
            if path.stat().st_mtime < time.time() - _KEPT_S:
                path.unlink(missing_ok=True)
