"""isobox: gVisor sandboxes for agents, by HTTP and websockets.

import isobox

with isobox.Sandbox.create("python") as sandbox:
    print(sandbox.exec("python3", "-c", "print(6 * 7)").stdout)
"""

from isobox.aio import AsyncContext, AsyncProcess, AsyncSandbox
from isobox.calls import Policy
from isobox.client import Context, Process, Sandbox
from isobox.errors import (
    ApiError,
    ConflictError,
    ConnectionFailed,
    ExecFailed,
    ForkIncomplete,
    InvalidRequest,
    IsoboxError,
    NotAuthenticated,
    NotFound,
    SandboxEnded,
    ServerError,
    StreamBroken,
    TooMany,
)
from isobox.values import Event, ExecError, ExecResult, FileInfo, Frame, Outcome, SandboxInfo, Snapshot

__all__ = [
    "ApiError",
    "AsyncContext",
    "AsyncProcess",
    "AsyncSandbox",
    "ConflictError",
    "ConnectionFailed",
    "Context",
    "Event",
    "ExecError",
    "ExecFailed",
    "ExecResult",
    "FileInfo",
    "ForkIncomplete",
    "Frame",
    "InvalidRequest",
    "IsoboxError",
    "NotAuthenticated",
    "NotFound",
    "Outcome",
    "Policy",
    "Process",
    "Sandbox",
    "SandboxEnded",
    "SandboxInfo",
    "ServerError",
    "Snapshot",
    "StreamBroken",
    "TooMany",
]
__version__ = "0.1.0"
