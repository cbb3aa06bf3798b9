"""Events as clients see them: JSON, binary frames, server-sent events. No I/O."""

import base64
import json
import struct
from datetime import UTC, datetime
from typing import Any, Final

from common.text import clean_json
from isolation.execlog import Event, EventType, Gap

JSON_PROTOCOL: Final = "isobox.v1.json"
BINARY_PROTOCOL: Final = "isobox.v1.bin"
_BINARY_HEAD: Final = struct.Struct(">BQ")
_NAMES: Final = {
    EventType.STDOUT: "stdout",
    EventType.STDERR: "stderr",
    EventType.STARTED: "started",
    EventType.ERROR: "error",
    EventType.NETWORK: "network",
    EventType.EXIT: "exit",
    EventType.RESULT: "result",
    EventType.SANDBOX: "sandbox",
}
_OUTPUT: Final = (EventType.STDOUT, EventType.STDERR)


def document(event: Event | Gap) -> dict[str, Any]:
    """An event as a JSON object."""
    if isinstance(event, Gap):
        data = {"omitted": {"stdout": event.stdout_bytes, "stderr": event.stderr_bytes}}
        return {"seq": event.seq, "t": None, "type": "gap", "data": data}
    when = datetime.fromtimestamp(event.t_us / 1e6, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    head = {"seq": event.seq, "t": when, "type": _NAMES[event.type]}
    if event.type not in _OUTPUT:
        data = clean_json(json.loads(event.payload))
        # A sandbox's own events carry their type in the payload.
        return head | ({"type": data.pop("type")} if "type" in data else {}) | {"data": data}
    try:
        return head | {"data": event.payload.decode()}
    except UnicodeDecodeError:
        return head | {"data_b64": base64.b64encode(event.payload).decode()}


def text_frame(event: Event | Gap) -> str:
    """For isobox.v1.json."""
    return json.dumps(document(event), ensure_ascii=False, separators=(",", ":"))


def binary_frame(event: Event | Gap) -> bytes | str:
    """For isobox.v1.bin: output as channel, seq and bytes; anything else as text."""
    if isinstance(event, Gap) or event.type not in _OUTPUT:
        return text_frame(event)
    return _BINARY_HEAD.pack(event.type, event.seq) + event.payload


def sse_frame(event: Event | Gap) -> bytes:
    """For text/event-stream; JSON has no line breaks, so one data line does."""
    found = document(event)
    body = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return f"id: {found['seq']}\nevent: {found['type']}\ndata: {body}\n\n".encode()


class ClientFrameError(ValueError):
    """A frame from the client that is out of protocol; the text says how."""


def client_frame(text: str) -> dict[str, Any]:
    """A client's frame: {"type": "stdin", "data": bytes}, stdin_eof, signal or resize, checked."""
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        raise ClientFrameError("a frame must be a JSON object") from None
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise ClientFrameError('a frame must be a JSON object with a "type"')
    kind = frame["type"]
    if kind == "stdin":
        return {"type": kind, "data": _stdin(frame)}
    if kind == "stdin_eof":
        return {"type": kind}
    if kind == "signal":
        return {"type": kind, "signal": frame.get("signal"), "group": frame.get("group", True) is not False}
    if kind == "resize":
        rows, cols = frame.get("rows"), frame.get("cols")
        if not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 1000 for n in (rows, cols)):
            raise ClientFrameError("rows and cols must be whole numbers from 1 to 1000")
        return {"type": kind, "rows": rows, "cols": cols}
    raise ClientFrameError(f"unknown frame type {kind[:40]!r}; known are stdin, stdin_eof, signal, resize")


def _stdin(frame: dict[str, Any]) -> bytes:
    data, encoded = frame.get("data"), frame.get("data_b64")
    try:
        if isinstance(data, str) and encoded is None:
            return data.encode()
        if isinstance(encoded, str) and data is None:
            return base64.b64decode(encoded, validate=True)
    except ValueError:
        raise ClientFrameError("data_b64 is not base64, or data is no text") from None
    raise ClientFrameError("stdin needs either data (text) or data_b64")
