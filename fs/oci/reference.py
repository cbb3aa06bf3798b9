"""Names of images in registries: HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]. Pure.

Source of the grammar: OCI distribution-spec, "Pulling manifests"; distribution/reference.
"""

import re
from dataclasses import dataclass
from typing import Final

from fs.errors import ImageInvalid

_HOST: Final = r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:.]+\])(?::\d{1,5})?"
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TAG: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_DIGEST: Final = r"sha256:[0-9a-f]{64}"
_REFERENCE: Final = re.compile(
    rf"(?P<host>{_HOST})/(?P<repository>{_PART}(?:/{_PART})*)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?"
)
_LONGEST: Final = 512


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry; by digest where there is one, else by tag."""

    host: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def version(self) -> str:
        """What to ask the registry for."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """Take a reference apart; ImageInvalid if it is none. The registry has to be named: there is no default one."""
    match = _REFERENCE.fullmatch(text) if len(text) <= _LONGEST else None
    host = match["host"] if match else ""
    if match is None or not ("." in host or ":" in host or host == "localhost"):
        raise ImageInvalid(
            f"{text[:100]!r} is no image in a registry",
            hint="write HOST/REPOSITORY:TAG with the registry's host, for example registry.example.com/team/app:1.2",
        )
    return Reference(host, match["repository"], match["tag"], match["digest"])
