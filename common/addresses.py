"""The addresses inside: the same in every sandbox, so that a copy of one goes on anywhere."""

from ipaddress import IPv4Address
from typing import Final

GUEST: Final = IPv4Address("10.200.0.2")
"""The sandbox's own."""

GATEWAY: Final = IPv4Address("10.200.0.1")
"""Its router and resolver."""

PREFIX: Final = 30
