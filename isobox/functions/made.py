"""A function or class as the server has it: made there on first use, once for each set of parameters."""

import threading
from collections.abc import Callable
from typing import Any

from isobox.calls import system
from isobox.functions.bundle import bundle
from isobox.functions.calls import upload
from isobox.functions.remote import Session
from isobox.image import Image, built


class Made:
    """See the module; parameters as `codec.encode` writes them, None for a function."""

    def __init__(
        self,
        session: Callable[[], Session],
        app: str,
        plain: Callable[..., Any],
        image: str | Image,
        fields: dict[str, Any],
        parameters: str | None = None,
    ) -> None:
        self._session = session
        self._app = app
        self._plain = plain
        self._image = image
        self._fields = fields
        self._parameters = parameters
        self._making = threading.Lock()
        self._id: str | None = None

    @property
    def keeps_ready(self) -> bool:
        """Whether containers of it are kept while the app runs."""
        return bool(self._fields.get("min_containers"))

    @property
    def name(self) -> str:
        """Its name in the app."""
        return self._plain.__qualname__.replace("<locals>.", "")

    @property
    def id(self) -> str:
        """The server's id for it; it is made now if it was not, its image too."""
        with self._making:
            if self._id is None:
                self._id = self._make(self._session())
            return self._id

    def _make(self, session: Session) -> str:
        packed, config = bundle(self._plain), session.config
        upload(session.transport, packed.digest, packed.archive)
        image = self._image if isinstance(self._image, str) else built(self._image, config.url, config.api_key)
        entry = packed.entry if self._parameters is None else packed.entry | {"parameters": self._parameters}
        fields = {"app": self._app, "name": self.name, "code": packed.digest, "entry": entry, "image": image}
        return str(session.transport.send(system("POST", "/v1/functions", json=fields | self._fields))["id"])

    def forget(self) -> None:
        """It is made anew when it is used next."""
        self._id = None

    def leave(self, session: Session) -> None:
        """The app ends: nothing of it is kept ready for it, and it is made anew in the next run."""
        made, self._id = self._id, None
        if made is not None and self.keeps_ready:
            session.transport.send(system("DELETE", f"/v1/functions/{made}"))
