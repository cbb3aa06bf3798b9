"""Ports inside a sandbox, over the wire."""

from pydantic import BaseModel

from sandbox_api.models.common import ForeignText


class Port(BaseModel):
    """A port that something inside listens on."""

    port: int
    address: ForeignText


class PortList(BaseModel):
    """What listens, by port."""

    ports: list[Port]


class PortWait(BaseModel):
    """Whether something listens on the port by now."""

    port: int
    listening: bool
