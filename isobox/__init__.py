"""isobox: gVisor sandboxes for agents, by HTTP and websockets.

import isobox

with isobox.Sandbox.create("python") as sandbox:
    print(sandbox.exec("python3", "-c", "print(6 * 7)").stdout)
"""

from isobox.aio import AsyncContext, AsyncProcess, AsyncSandbox
from isobox.bucket import Bucket
from isobox.calls import Policy
from isobox.client import Context, Process, Sandbox
from isobox.errors import (
    ApiError,
    ConflictError,
    ConnectionFailed,
    ExecFailed,
    ForkIncomplete,
    ImageFailed,
    InvalidRequest,
    IsoboxError,
    NotAuthenticated,
    NotFound,
    SandboxEnded,
    ServerError,
    StreamBroken,
    TooMany,
)
from isobox.functions.app import App, Deployed, Function
from isobox.functions.calls import FunctionCall, gather
from isobox.functions.cls import again
from isobox.functions.errors import (
    CallCancelled,
    ContainerFailed,
    FunctionError,
    FunctionTimeout,
    NotSerializable,
    RemoteError,
)
from isobox.functions.marks import (
    asgi_app,
    batched,
    concurrent,
    enter,
    exit,
    fastapi_endpoint,
    method,
    parameter,
    web_server,
)
from isobox.functions.objects import Dict, Queue
from isobox.functions.schedules import Cron, Period
from isobox.gpus import Gpu, GpuAsk, gpus
from isobox.image import Image
from isobox.secret import Secret
from isobox.values import (
    Event,
    ExecError,
    ExecResult,
    FileChange,
    FileInfo,
    FilePage,
    Frame,
    ImageInfo,
    Outcome,
    SandboxInfo,
    Snapshot,
)
from isobox.volume import Volume

__all__ = [
    "ApiError",
    "App",
    "AsyncContext",
    "AsyncProcess",
    "AsyncSandbox",
    "Bucket",
    "CallCancelled",
    "ConflictError",
    "ConnectionFailed",
    "ContainerFailed",
    "Context",
    "Cron",
    "Deployed",
    "Dict",
    "Event",
    "ExecError",
    "ExecFailed",
    "ExecResult",
    "FileChange",
    "FileInfo",
    "FilePage",
    "ForkIncomplete",
    "Frame",
    "Function",
    "FunctionCall",
    "FunctionError",
    "FunctionTimeout",
    "Gpu",
    "GpuAsk",
    "Image",
    "ImageFailed",
    "ImageInfo",
    "InvalidRequest",
    "IsoboxError",
    "NotAuthenticated",
    "NotFound",
    "NotSerializable",
    "Outcome",
    "Period",
    "Policy",
    "Process",
    "Queue",
    "RemoteError",
    "Sandbox",
    "SandboxEnded",
    "SandboxInfo",
    "Secret",
    "ServerError",
    "Snapshot",
    "StreamBroken",
    "TooMany",
    "Volume",
    "again",
    "asgi_app",
    "batched",
    "concurrent",
    "enter",
    "exit",
    "fastapi_endpoint",
    "gather",
    "gpus",
    "method",
    "parameter",
    "web_server",
]
__version__ = "0.1.0"
