"""Dicts and queues over the wire: keys and values are bytes in base64, which the server does not read."""

from datetime import datetime
from typing import Annotated

from pydantic import Base64Bytes, BaseModel, Field

from sandbox_api.models.common import Page, Strict

ObjectName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
KEY_MAX = 4096
VALUE_MAX = 1 << 20
BATCH_MAX = 1000
Key = Annotated[Base64Bytes, Field(max_length=KEY_MAX)]
Value = Annotated[Base64Bytes, Field(max_length=VALUE_MAX)]
Part = Annotated[str, Field(max_length=64)]
Token = Annotated[str, Field(pattern=r"^[a-z0-9]{16,64}$")]
WAIT_MAX_S = 25.0


class CreateObject(Strict):
    """ttl_s: it is deleted when nobody has used it for so long; null for never."""

    ttl_s: Annotated[float, Field(ge=60, le=366 * 86400, allow_inf_nan=False)] | None = None


class Object(BaseModel):
    """A dict or a queue: how many items it has (of a queue in all its partitions)."""

    name: str
    created_at: datetime
    ttl_s: float | None
    items: int


class ObjectPage(Page):
    """The tenant's dicts, or queues, by name."""

    objects: list[Object]


class Keys(Strict):
    """Keys of a dict. token: whoever asks again with the same one is answered the same for an hour."""

    keys: Annotated[list[Key], Field(max_length=BATCH_MAX)]
    token: Token | None = None


class Values(BaseModel):
    """A value for each key, null where there is none."""

    values: list[str | None]


class Item(Strict):
    """A key and its value."""

    key: Key
    value: Value


class PutItems(Strict):
    """Keys and their values; with if_absent those that are there stay as they are."""

    items: Annotated[list[Item], Field(max_length=BATCH_MAX)]
    if_absent: bool = False
    token: Token | None = None


class Put(BaseModel):
    """For each item whether it was set."""

    put: list[bool]


class Shown(BaseModel):
    """A key and its value; of a queue there are no keys."""

    key: str | None = None
    value: str


class Items(BaseModel):
    """Some items, in the order that their keys came; next is where the others begin, null at the end."""

    items: list[Shown]
    next: int | None


class PutValues(Strict):
    """Values for the end of a partition, all or none. ttl_s: they are kept so long."""

    values: Annotated[list[Value], Field(min_length=1, max_length=BATCH_MAX)]
    partition: Part = ""
    ttl_s: Annotated[float, Field(gt=0, le=30 * 86400, allow_inf_nan=False)] = 86400.0
    token: Token | None = None


class GetValues(Strict):
    """Up to count values of a partition's front, taken out."""

    count: Annotated[int, Field(ge=1, le=BATCH_MAX)] = 1
    partition: Part = ""
    token: Token | None = None


class Taken(BaseModel):
    """Values, in their order; none where nothing came in time."""

    values: list[str]


class Lengths(BaseModel):
    """How many values wait, by partition."""

    partitions: dict[str, int]


class ClearQueue(Strict):
    """A partition, or null for all."""

    partition: Part | None = None
