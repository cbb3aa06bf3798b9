"""Where a list goes on, opaque to clients. No I/O."""

import base64
import json

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
        return float(moment), str(id_)
    except (ValueError, TypeError) as error:
        raise invalid("cursor is not one of ours", "pass next_cursor of the previous page, unchanged") from error
