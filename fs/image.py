"""What is known of an image. Pure."""

from dataclasses import dataclass, field
from typing import Any, Final

from common.ids import is_id

STEP: Final = "step."
"""How names of what single steps of a build came to begin."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is ready for use; size in bytes, created_at in seconds since the epoch.

    `config` holds what its maker meant for what runs in it: env, workdir, user, command (of an OCI image's config).
    """

    id: str
    name: str
    digest: str
    init: str
    size: int
    created_at: float
    config: dict[str, Any] = field(default_factory=dict)
    origin: str | None = None
    """The URL of the store that keeps its contents, if this machine does not."""


def is_inner(name: str) -> bool:
    """Whether a server gave a name, and no person: a tenant's image, a step of a build, a volume's version."""
    return is_id(name, "img") or name.startswith(STEP) or is_id(name.partition(".")[0], "vol")
