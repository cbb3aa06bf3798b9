"""isobox: gVisor sandboxes for agents, by HTTP and websockets.

import isobox

with isobox.Sandbox.create("python") as sandbox:
    print(sandbox.exec("python3", "-c", "print(6 * 7)").stdout)
"""

from isobox.aio import AsyncProcess, AsyncSandbox
from isobox.client import Process, Sandbox
from isobox.errors import (
    ApiError,
    ConflictError,
    ConnectionFailed,
    ExecFailed,
    InvalidRequest,
    IsoboxError,
    NotAuthenticated,
    NotFound,
    SandboxEnded,
    ServerError,
    StreamBroken,
    TooMany,
)
from isobox.values import Event, ExecError, ExecResult, FileInfo, Frame, Outcome, SandboxInfo

__all__ = [
    "ApiError",
    "AsyncProcess",
    "AsyncSandbox",
    "ConflictError",
    "ConnectionFailed",
    "Event",
    "ExecError",
    "ExecFailed",
    "ExecResult",
    "FileInfo",
    "Frame",
    "InvalidRequest",
    "IsoboxError",
    "NotAuthenticated",
    "NotFound",
    "Outcome",
    "Process",
    "Sandbox",
    "SandboxEnded",
    "SandboxInfo",
    "ServerError",
    "StreamBroken",
    "TooMany",
]
__version__ = "0.1.0"
