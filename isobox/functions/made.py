"""A function or class as the server has it: made there on first use, once for each set of parameters."""

import threading
from collections.abc import Callable
from typing import Any

from isobox.calls import system
from isobox.functions import marks
from isobox.functions.bundle import bundle
from isobox.functions.calls import upload
from isobox.functions.remote import Session
from isobox.image import Image, built


class Made:
    """See the module; parameters as `codec.encode` writes them, None for a function."""

    def __init__(
        self,
        session: Callable[[], Session],
        app: Callable[[], str],
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
        self.parameters = parameters
        self._making = threading.Lock()
        self._id: str | None = None

    @property
    def keeps_ready(self) -> bool:
        """Whether containers of it are kept while the app runs."""
        return bool(self._fields.get("min_containers"))

    @property
    def name(self) -> str:
        """Its name in the app."""
        return marks.title(self._plain)

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
        entry = packed.entry if self.parameters is None else packed.entry | {"parameters": self.parameters}
        fields = {"app": self._app(), "name": self.name, "code": packed.digest, "entry": entry, "image": image}
        body = fields | self._fields | {"run": session.run}
        made = str(session.transport.send(system("POST", "/v1/functions", json=body))["id"])
        session.begun()
        return made

    @property
    def known(self) -> str | None:
        """The server's id for it, if it was made."""
        return self._id

    def forget(self) -> None:
        """It is made anew when it is used next."""
        self._id = None
