"""Files that clients send ahead of a build: by digest, a tenant's own, kept for a day."""

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from common.ids import new_id
from isolation.errors import DiskFull
from sandbox_api.problems import Problem
from sandbox_api.services.quota import Quota

_KEPT_S: Final = 86400.0
_PIECE: Final = 1 << 20
UPLOAD_MAX: Final = 8 << 30
_FILE: Final = 64 << 10
"""Bytes that a file counts as at least: very many small ones cost too."""


class Uploads:
    """A folder of files; a file is there whole or not at all. limit_bytes bounds those of each tenant."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._quota = Quota(limit_bytes, "uploads", setting="ISOBOX_UPLOADS_QUOTA_MB")
        for path in folder.glob("*/*"):
            self._quota.add(path.parent.name, max(_FILE, path.stat().st_size))

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
        found, size, taken, whose = hashlib.sha256(), 0, 0, target.parent.name
        try:
            self._quota.take(whose, _FILE)
            taken = _FILE
            with partial.open("xb") as file:
                async for piece in contents:
                    size += len(piece)
                    if size > UPLOAD_MAX:
                        raise Problem(413, "upload_too_large", f"uploads are of at most {UPLOAD_MAX >> 30} GiB")
                    if size > taken:
                        self._quota.take(whose, size - taken)
                        taken = size
                    found.update(piece)
                    await asyncio.to_thread(file.write, piece)
            if f"sha256:{found.hexdigest()}" != digest:
                raise Problem(422, "digest_mismatch", "the body is not what its digest says", hint="send it again")
            with contextlib.suppress(FileNotFoundError):
                self._quota.give(whose, max(_FILE, target.stat().st_size))  # the same again
            os.replace(partial, target)
            taken = 0
        except OSError as error:
            raise DiskFull(f"the upload cannot be kept: {error.strerror}", hint="see the disk") from error
        finally:
            self._quota.give(whose, taken)
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
            with contextlib.suppress(FileNotFoundError):  # somebody sent it again, or gave up
                facts = path.stat()
                if facts.st_mtime < time.time() - _KEPT_S:
                    path.unlink()
                    self._quota.give(path.parent.name, max(_FILE, facts.st_size))
