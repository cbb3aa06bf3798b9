"""Records of what was let through and what was refused. No I/O.

Every decision makes one record: a name that was asked for (`dns`), a connection that began (`flow`) and ended
(`closed`), an attempt that was refused (`refused`).
"""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

Event = Literal["dns", "flow", "closed", "refused", "secret"]


@dataclass(slots=True)
class Record:
    """One record; seq counts those of one gateway, whose name is `boot`; times in seconds since the epoch.

    `secret` tells that an answer held a credential, and was made unreadable.
    """

    event: Event
    sandbox: str
    generation: int
    verdict: Literal["allow", "refuse"]
    rule: str
    reason: str = ""
    hint: str = ""
    name: str | None = None
    destination: str | None = None
    port: int | None = None
    proto: str | None = None
    sni: str | None = None
    host: str | None = None
    flow: int | None = None
    tx_bytes: int | None = None
    rx_bytes: int | None = None
    duration_s: float | None = None
    at: float = field(default_factory=time.time)
    boot: str = ""
    seq: int = 0

    def document(self) -> dict[str, Any]:
        """As it is written down: what does not apply is left out."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) not in (None, "")}
