"""Where the server is and which key opens it."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from isobox.errors import IsoboxError

DEFAULT_URL = "http://127.0.0.1:8700"


@dataclass(frozen=True, slots=True)
class Config:
    """A server's address and an API key; "" where none is known."""

    url: str
    api_key: str

    @classmethod
    def find(cls, url: str | None = None, api_key: str | None = None) -> "Config":
        """As given, else from ISOBOX_URL and ISOBOX_API_KEY, else the server of this machine and the key it wrote."""
        url = url or os.environ.get("ISOBOX_URL") or DEFAULT_URL
        api_key = api_key or os.environ.get("ISOBOX_API_KEY") or _local_key(url, "api-key")
        return cls(url.rstrip("/"), api_key)

    @classmethod
    def find_operator(cls) -> "Config":
        """The server as `find` finds it, and the operator's key: ISOBOX_OPERATOR_KEY, else that which it wrote here."""
        url = os.environ.get("ISOBOX_URL") or DEFAULT_URL
        key = os.environ.get("ISOBOX_OPERATOR_KEY") or _local_key(url, "operator-key")
        if not key:
            raise IsoboxError(
                "this takes the operator's key: set ISOBOX_OPERATOR_KEY"
                " (it is in the server's state directory, file operator-key)"
            )
        return cls(url.rstrip("/"), key)

    @property
    def websocket_url(self) -> str:
        """The address for websockets."""
        return "ws" + self.url.removeprefix("http")

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates a request."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


def _local_key(url: str, name: str) -> str:
    """The key that this machine's server wrote, for that server alone: another host is not to have it."""
    if not _is_this_machine(url):
        return ""
    path = Path(os.environ.get("ISOBOX_STATE", "/var/lib/isobox")) / name
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _is_this_machine(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
