"""Secrets: what the server keeps sealed and never tells again.

isobox.Secret.put("openai-key", "sk-…")

@app.function(secrets=[isobox.Secret.from_name("openai-key")])  # OPENAI_KEY in the container's environment
def ask(question): ...

A container can read such a variable, and send it wherever its network policy lets it. What only has to be in requests
to one host is safer as `inject` in that policy: then the container never has it (docs/policies.md).
"""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from secrets import token_hex

from isobox import calls
from isobox.config import Config
from isobox.transport import Transport


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret by its name, and the variable that a function finds it in."""

    name: str
    env: str

    @classmethod
    def from_name(cls, name: str, *, env: str | None = None) -> "Secret":
        """In this variable; by default the name in capitals, with underscores."""
        return cls(name, env or re.sub(r"[^A-Z0-9_]", "_", name.upper()))

    @classmethod
    def put(cls, name: str, value: str, *, url: str | None = None, api_key: str | None = None) -> "Secret":
        """Keep a value of at least 8 characters, or replace it: containers that start later have it."""
        with closing(Transport(Config.find(url, api_key))) as transport:
            transport.send(calls.secret("PUT", name, json={"value": value}))
        return cls.from_name(name)

    @classmethod
    @contextmanager
    def ephemeral(
        cls, value: str, *, env: str, url: str | None = None, api_key: str | None = None
    ) -> Iterator["Secret"]:
        """One for the time of the block, in this variable: containers that start later cannot have it."""
        made = replace(cls.put(f"ephemeral-{token_hex(12)}", value, url=url, api_key=api_key), env=env)
        try:
            yield made
        finally:
            made.delete(url=url, api_key=api_key)

    def delete(self, *, url: str | None = None, api_key: str | None = None) -> None:
        """Forget it; NotFound."""
        with closing(Transport(Config.find(url, api_key))) as transport:
            transport.send(calls.secret("DELETE", self.name))
