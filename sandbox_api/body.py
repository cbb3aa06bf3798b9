"""Request bodies are bounded before they are held: all JSON in size, and in depth before it is parsed."""

import re
from typing import Final

from starlette.types import Message, Receive

from sandbox_api.problems import Problem

JSON_MAX: Final = 4 << 20
DEPTH_MAX: Final = 32
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKETS: Final = re.compile(rb"[\[\]{}]")


def depth(body: bytes) -> int:
    """How deeply a JSON text nests, strings left out; at most DEPTH_MAX + 1 is counted."""
    level = deepest = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", body)):
        level += 1 if bracket in b"[{" else -1
        if level > deepest:
            deepest = level
            if deepest > DEPTH_MAX:
                break
    return deepest


def too_large(limit: int) -> Problem:
    """413."""
    return Problem(
        413,
        "body_too_large",
        f"the body is larger than {limit} bytes",
        hint="send large data as a file (PUT …/files) or as stdin",
    )


async def read_json(receive: Receive, declared: bytes | None) -> bytes:
    """The whole body; 413 as soon as it is known to be too large, 400 where it nests too deeply."""
    if declared is not None and declared.isdigit() and int(declared) > JSON_MAX:
        raise too_large(JSON_MAX)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "body_incomplete", "the connection was closed in the middle of the body")
        body += message.get("body", b"")
        if len(body) > JSON_MAX:
            raise too_large(JSON_MAX)
        if not message.get("more_body", False):
            break
    if depth(bytes(body)) > DEPTH_MAX:
        raise Problem(400, "body_too_deep", f"the body nests deeper than {DEPTH_MAX} levels", hint="flatten it")
    return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives this body, then goes on as before."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
