"""Where a list goes on, opaque to clients. No I/O."""

import base64
import json
import math

from sandbox_api.problems import invalid


def encode_cursor(created_at: float, id_: str) -> str:
    """The place behind a row, as text."""
    return base64.urlsafe_b64encode(json.dumps([created_at, id_]).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> tuple[float, str] | None:
    """The other way; 422 for what is none of ours."""
    if cursor is None:
        return None
    try:
        moment, id_ = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(id_, str) or not id_.isascii() or not math.isfinite(moment):
            raise ValueError("not as encode_cursor makes it")
        return float(moment), id_
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise invalid("cursor is not one of ours", "pass next_cursor of the previous page, unchanged") from error
