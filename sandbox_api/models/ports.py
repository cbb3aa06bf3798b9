"""Ports inside a sandbox, over the wire."""

from pydantic import BaseModel


class Port(BaseModel):
    """A port that something inside listens on."""

    port: int
    address: str


class PortList(BaseModel):
    """What listens, by port."""

    ports: list[Port]


class PortWait(BaseModel):
    """Whether something listens on the port by now."""

    port: int
    listening: bool
