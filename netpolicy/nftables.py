"""Applies rules: libnftables, in process. One transaction a call: all of it happens, or nothing."""

import ctypes
import ctypes.util
import threading
from typing import Final

from netpolicy.errors import NetworkUnavailable

_LIBRARY: Final = "libnftables.so.1"


class Nftables:
    """A handle of libnftables (libnftables(3)); calls block for a millisecond or so, from any thread."""

    def __init__(self) -> None:
        """NetworkUnavailable where the library is not installed."""
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise NetworkUnavailable("libnftables is not installed", hint="install the package nftables") from error
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
        for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_output_buffer.argtypes = [ctypes.c_void_p]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library
        self._context = library.nft_ctx_new(0)
        self._lock = threading.Lock()
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, script: str) -> str:
        """Apply a script and return what it prints; NetworkUnavailable with the kernel's or the parser's words."""
        with self._lock:
            status = self._library.nft_run_cmd_from_buffer(self._context, script.encode())
            output = self._library.nft_ctx_get_output_buffer(self._context) or b""
            error = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if status != 0:
            words = error.decode(errors="replace").strip()[:500]
            raise NetworkUnavailable(f"the kernel refused the rules: {words}", hint="run `isobox doctor`")
        return str(output.decode(errors="replace"))

    def close(self) -> None:
        """Free the handle."""
        self._library.nft_ctx_free(self._context)
