"""Overwrites all memory of a GPU that can be had, so that its next tenant finds nothing of the last one's.

A program of its own, `python -m gpu.scrub UUID`: a driver that hangs or a library that crashes takes nobody with it.
It speaks libcuda by ctypes. Source: CUDA Driver API (cuda.h), the `_v2` names.
"""

import ctypes
import os
import sys
from typing import Final

_PIECE: Final = 256 << 20
_LEAST: Final = 1 << 20
_SPARE: Final = 64 << 20
"""What the driver itself holds, and a context of ours."""


class _Cuda:
    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")

    def call(self, name: str, *arguments: object) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise SystemExit(f"{name} failed with CUDA error {status}")

    def tries(self, name: str, *arguments: object) -> bool:
        return bool(getattr(self._library, name)(*arguments) == 0)


def scrub() -> int:
    """Overwrite the one GPU that CUDA_VISIBLE_DEVICES shows: bytes written."""
    cuda, device, context = _Cuda(), ctypes.c_int(), ctypes.c_void_p()
    cuda.call("cuInit", 0)
    cuda.call("cuDeviceGet", ctypes.byref(device), 0)
    cuda.call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    written, piece = 0, _PIECE
    while piece >= _LEAST:
        at = ctypes.c_uint64()
        if not cuda.tries("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(piece)):
            piece //= 2
            continue
        cuda.call("cuMemsetD8_v2", at, ctypes.c_ubyte(0), ctypes.c_size_t(piece))
        written += piece
    cuda.call("cuCtxSynchronize")
    cuda.call("cuCtxDestroy_v2", context)  # and with it all that was allocated
    if written + _SPARE < free.value:
        raise SystemExit(f"only {written >> 20} of {free.value >> 20} MiB could be overwritten")
    return written


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = sys.argv[1]
    print(scrub())
