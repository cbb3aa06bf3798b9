"""Ids: a kind of three letters and 26 lower-case base-32 characters (130 random bits), one DNS label long."""

import re
import secrets
from typing import Literal

Kind = Literal["sbx", "exe", "snp", "img", "vol", "ctx", "req", "fun", "cal", "run", "obj", "own"]
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_LENGTH = 26


def new_id(kind: Kind) -> str:
    """A fresh id such as ``sbx5k2…``; unguessable."""
    number = secrets.randbits(5 * _LENGTH)
    return kind + "".join(_ALPHABET[number >> shift & 31] for shift in range(0, 5 * _LENGTH, 5))


def is_id(text: str, kind: Kind) -> bool:
    """Whether text has the form of an id of that kind."""
    return re.fullmatch(rf"{kind}[a-z2-7]{{{_LENGTH}}}", text) is not None
