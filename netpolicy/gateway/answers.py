"""Heads of answers from hosts that credentials go to: what of them goes on, and which are refused. No I/O."""

from http import HTTPStatus
from typing import Final

import h11

from netpolicy.gateway.http import Headers
from netpolicy.gateway.redact import Redactor

_SWITCHING, _CONTINUE, _PARTIAL = HTTPStatus.SWITCHING_PROTOCOLS, HTTPStatus.CONTINUE, HTTPStatus.PARTIAL_CONTENT
_DROPPED: Final = frozenset({b"content-encoding", b"content-range", b"trailer"})


class AnswerRefused(Exception):
    """An answer that does not go on; the text says why."""


def head(answer: h11.Response | h11.InformationalResponse, redactor: Redactor, *, websocket: bool) -> h11.Event | None:
    """The head that goes on, its secrets replaced; None for one that has no say. AnswerRefused.

    websocket tells whether the request asked for one.
    """
    status = answer.status_code
    if isinstance(answer, h11.InformationalResponse):
        if status == _CONTINUE:
            return h11.InformationalResponse(status_code=status, headers=[], reason=b"Continue")
        if status != _SWITCHING:
            return None  # hints (103) and the like: a program does without them
        _check_switch(answer, websocket=websocket)
    elif status == _PARTIAL:
        raise AnswerRefused("the host answered with a piece (206) that was not asked for")
    elif codings := _codings(answer):
        raise AnswerRefused(f"the host answered in a coding that was not asked for ({', '.join(codings)[:80]})")
    headers = [(name, value) for name, value in _plain(list(answer.headers), redactor) if name not in _DROPPED]
    return type(answer)(status_code=status, headers=headers, reason=_phrase(status))


def _check_switch(answer: h11.InformationalResponse, *, websocket: bool) -> None:
    names = [name for name, _ in answer.headers]
    protocols = [value.lower() for name, value in answer.headers if name == b"upgrade"]
    if not websocket or protocols != [b"websocket"]:
        raise AnswerRefused("the host switched to a protocol that was not asked for")
    if b"sec-websocket-extensions" in names:
        raise AnswerRefused("the host's websocket has an extension that was not asked for")


def _codings(answer: h11.Response) -> list[str]:
    listed = b",".join(value for name, value in answer.headers if name == b"content-encoding")
    codings = [coding.strip().lower().decode("latin-1") for coding in listed.split(b",")]
    return [coding for coding in codings if coding not in ("", "identity")]


def _plain(headers: Headers, redactor: Redactor) -> Headers:
    """The headers with their values redacted, without those whose names hold a secret."""
    return [(name, redactor.all(value)) for name, value in headers if redactor.all(name) == name]


def _phrase(status: int) -> bytes:
    """The reason phrase of the standard, in place of the host's."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
