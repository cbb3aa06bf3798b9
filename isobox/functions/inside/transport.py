"""Sends calls from inside a container: through the runner, which asks the server. In `reach.zip`."""

import json
from typing import Any
from urllib.parse import urlencode

import isobox_inside

from isobox.calls import Call, raise_for
from isobox.config import Config


class Transport:
    """Blocking; there is one way out, whatever the configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def close(self) -> None:
        """Nothing to close."""

    def send(self, call: Call) -> Any:
        """The answer's JSON, or its bytes; ApiError."""
        path = f"{call.path}?{urlencode(call.params)}" if call.params else call.path
        body = call.content or (b"" if call.json is None else json.dumps(call.json).encode())
        status, data = isobox_inside.ask(call.method, path, body)
        is_json = status >= 400 or "/values/" not in path
        found = json.loads(data) if is_json and data else data
        raise_for(status, found)
        return found
