"""Network policies over the wire. What rules mean is checked by `netpolicy.policy`, for all that have any."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from sandbox_api.models.common import Strict, Text

Port = Annotated[int, Field(ge=1, le=65535)] | Annotated[str, Field(pattern=r"^\d{1,5}-\d{1,5}$")]
Host = Annotated[Text, Field(max_length=1024)]
SecretName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
PresetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Count = Annotated[int, Field(ge=1, le=1 << 50)]


class Rule(Strict):
    """Hosts by name (`*.` before one: all below it), or addresses; ports as numbers and ranges ("8000-8100")."""

    host: Host | None = None
    cidr: Annotated[Text, Field(max_length=64)] | None = None
    ports: Annotated[list[Port], Field(max_length=64)] = []
    proto: Literal["tcp", "udp"] | None = None


class Injection(Strict):
    """A credential for one host: put in as a header, or in place of the placeholder that stands in `env`."""

    host: Host
    secret: SecretName
    header: Annotated[Text, Field(max_length=64)] | None = None
    format: Annotated[Text, Field(max_length=1024)] | None = None
    env: Annotated[Text, Field(max_length=128)] | None = None
    methods: Annotated[list[Annotated[Text, Field(max_length=64)]], Field(max_length=16)] = []
    path_prefix: Annotated[Text, Field(max_length=1024)] | None = None
    budget: Count | None = None


class Limits(Strict):
    """Bounds; sizes in bytes as the network carries them."""

    connections: Count | None = None
    new_connections_per_s: Count | None = None
    tx_bytes: Count | None = None
    tx_bytes_per_s: Count | None = None
    dns_per_s: Count | None = None


class NetworkPolicy(Strict):
    """What may leave a sandbox; by default nothing. With `preset` these rules are added to a named policy."""

    preset: PresetName | None = None
    default: Literal["deny", "allow"] = "deny"
    allow: Annotated[list[Rule], Field(max_length=2000)] = []
    deny: Annotated[list[Rule], Field(max_length=2000)] = []
    inject: Annotated[list[Injection], Field(max_length=64)] = []
    limits: Limits = Limits()

    def asked(self) -> dict[str, Any]:
        """As the policy's parser takes it."""
        return self.model_dump(exclude_none=True, exclude_defaults=True)


def _kind(value: object) -> str:
    return "preset" if isinstance(value, str) else "policy"


# Told apart first, so that an error speaks of what was meant.
AskedPolicy = Annotated[
    Annotated[PresetName, Tag("preset")] | Annotated[NetworkPolicy, Tag("policy")], Discriminator(_kind)
]


def asked(policy: NetworkPolicy | str | None) -> dict[str, Any] | str | None:
    """As the policy's parser takes it."""
    return policy.asked() if isinstance(policy, NetworkPolicy) else policy


class Network(BaseModel):
    """A sandbox's network: the policy as it was asked for, and what that means; `generation` counts its changes."""

    asked: dict[str, Any] | str | None
    policy: dict[str, Any]
    generation: int


class AuditRecord(BaseModel):
    """A decision. Events: `dns`, `flow` (began), `closed` (ended), `refused`, `secret` (seen where it must not be)."""

    model_config = ConfigDict(extra="allow")

    seq: int
    at: datetime | None = None
    event: str
    verdict: Literal["allow", "refuse"] | None = None
    rule: str | None = None
    reason: str | None = None
    hint: str | None = None


class AuditPage(BaseModel):
    """Some of the audit, the oldest first; `next` is the `from` to go on with."""

    records: list[AuditRecord]
    next: int


class PutSecret(Strict):
    """A secret's value; it can be replaced, never read."""

    value: Annotated[str, Field(min_length=8, max_length=16384, pattern=r"^[\x21-\x7e]+$")]


class Secret(BaseModel):
    """A secret, without its value."""

    name: str
    created_at: datetime
    updated_at: datetime


class SecretList(BaseModel):
    """All of a tenant's secrets, by name."""

    secrets: list[Secret]
