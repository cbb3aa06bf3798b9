"""What server and gateway say to each other: one JSON object a packet, over SOCK_SEQPACKET. No I/O.

server ─▶ gateway   {"call": N, "do": "hello" | "put" | "drop" | "keep" | "stop", …}     {"acknowledged": SEQ}
gateway ─▶ server   {"answer": N, …}    {"records": […], "lost": how many found no room}
"""

import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from netpolicy.floor import Floor
from netpolicy.gateway.ward import Authority, Credentials
from netpolicy.match import Rules
from netpolicy.policy import Policy, document, parse

PACKET_MAX: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Guarded:
    """What the gateway needs to know of one sandbox."""

    sandbox: str
    address: IPv4Address
    device: int
    generation: int
    rules: Rules
    credentials: Credentials


def encode_guarded(each: Guarded) -> dict[str, Any]:
    """As it travels."""
    authority = each.credentials.authority
    return {
        "sandbox": each.sandbox,
        "address": str(each.address),
        "device": each.device,
        "generation": each.generation,
        "policy": document(each.rules.policy),
        "operator": {
            "holes": [str(hole) for hole in each.rules.floor.holes],
            "block": str(each.rules.floor.block),
            "deny": document(Policy(deny=each.rules.operator_deny))["deny"],
        },
        "secrets": each.credentials.secrets,
        "placeholders": each.credentials.placeholders,
        "authority": None if authority is None else [authority.certificate, authority.key],
    }


def decode_guarded(found: dict[str, Any]) -> Guarded:
    """And back."""
    operator = found["operator"]
    floor = Floor(tuple(IPv4Network(each) for each in operator["holes"]), IPv4Network(operator["block"]))
    rules = Rules(parse(found["policy"]), floor, parse({"deny": operator["deny"]}).deny)
    authority = None if found["authority"] is None else Authority(*found["authority"])
    credentials = Credentials(found["secrets"], found["placeholders"], authority)
    address = IPv4Address(found["address"])
    return Guarded(found["sandbox"], address, found["device"], found["generation"], rules, credentials)


def packet(message: dict[str, Any]) -> bytes:
    """A message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode()
