"""What calls came to, on this machine's disk: large values as files, and how much of it inputs and results take.

A container says how large a value is and what is in it, so a tenant's results are counted before anything is read, no
value is larger than the disk that its container has, and what is empty takes no disk here either (a sparse file).
Inputs are counted too, until they are over: containers make calls.

    FOLDER/CALL/NAME     a large value
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from common.ids import new_id
from isolation.errors import DiskFull
from sandbox_api.problems import Problem
from sandbox_api.services.quota import ROW, Quota
from sandbox_api.store.functions import CallRecord, FunctionStore

_PIECE: Final = 1 << 20
_BLOCK: Final = 64 << 10
_ZEROS: Final = bytes(_BLOCK)
_UNSAVED_MAX: Final = 64 << 10


class Values:
    """See the module."""

    def __init__(self, folder: Path, store: FunctionStore, limit_bytes: int) -> None:
        """limit_bytes bounds each tenant's results, small ones too."""
        self._folder = folder
        self._store = store
        self._quota = Quota(limit_bytes, "inputs and results of functions", setting="ISOBOX_VALUES_QUOTA_MB")
        self._unsaved: dict[str, int] = {}
        for tenant, size in store.kept_bytes().items():
            self._quota.add(tenant, size)

    # ---- how much there is

    def take(self, call: CallRecord, size: int) -> None:
        """A result of so many bytes comes to a call; Problem (507) where its tenant has no room for it."""
        self._quota.take(call.tenant, ROW + size)
        call.kept += ROW + size
        unsaved = self._unsaved.get(call.id, 0) + ROW + size
        if unsaved > _UNSAVED_MAX:
            unsaved = 0
            self._store.save_call(call)
        self._unsaved[call.id] = unsaved

    def give(self, call: CallRecord, size: int) -> None:
        """It did not come after all."""
        self._quota.give(call.tenant, ROW + size)
        call.kept -= ROW + size
        self._store.save_call(call)

    def take_inputs(self, call: CallRecord, sizes: Sequence[int]) -> None:
        """Inputs of so many bytes come to a call, which is saved after that; Problem (507)."""
        size = sum(sizes) + ROW * len(sizes)
        self._quota.take(call.tenant, size)
        call.kept += size

    def give_input(self, call: CallRecord, size: int) -> None:
        """An input is over, and its argument gone; the call is saved after that."""
        gone = min(call.kept, ROW + size)  # less in a call of an earlier release, which did not count
        self._quota.give(call.tenant, gone)
        call.kept -= gone

    def take_for_a_while(self, tenant: str, size: int) -> None:
        """What a container asks lies here until it is answered; Problem (507). `give_back` ends it."""
        self._quota.take(tenant, size)

    def give_back(self, tenant: str, size: int) -> None:
        """It was answered."""
        self._quota.give(tenant, size)

    def forget(self, id_: str) -> None:
        """Delete a call's record, its results and its large values."""
        if (call := self._store.call(id_)) is not None:
            self._quota.give(call.tenant, call.kept)
        self._unsaved.pop(id_, None)
        self._store.forget_call(id_)
        shutil.rmtree(self._folder / id_, ignore_errors=True)

    # ---- large ones

    async def write(self, call: str, contents: AsyncIterator[bytes], size: int) -> str:
        """Keep a large value: what it is kept as. Problem (422) if it has another size; DiskFull."""
        name = new_id("req")
        path = self._folder / call / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with path.open("xb") as file:
                async for piece in contents:
                    if file.tell() + len(piece) > size:
                        raise Problem(422, "value_cut", f"a result of {size} bytes has more")
                    await asyncio.to_thread(_write, file, piece)
                if file.tell() != size:
                    raise Problem(422, "value_cut", f"a result of {size} bytes had {file.tell()} when it was read")
                file.truncate(size)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise DiskFull(f"a result cannot be kept: {error.strerror}", hint="see the disk") from error
            raise
        return name

    def drop(self, call: str, name: str) -> None:
        """Delete a large value."""
        (self._folder / call / name).unlink(missing_ok=True)

    async def read(self, call: str, name: str) -> AsyncIterator[bytes]:
        """A large value's bytes."""
        with (self._folder / call / name).open("rb") as file:
            while piece := await asyncio.to_thread(file.read, _PIECE):
                yield piece


def _write(file: BinaryIO, piece: bytes) -> None:
    """Write a piece, and leave holes where it is empty."""
    for begin in range(0, len(piece), _BLOCK):
        block = piece[begin : begin + _BLOCK]
        if block == _ZEROS[: len(block)]:
            file.seek(len(block), os.SEEK_CUR)
        else:
            file.write(block)
