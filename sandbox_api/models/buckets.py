"""Buckets over the wire."""

from typing import Annotated

from pydantic import AfterValidator, Field

from sandbox_api.models.common import Strict, Text
from sandbox_api.models.network import SecretName


def _folder(prefix: str) -> str:
    if prefix.startswith("/") or any(part in ("", ".", "..") for part in prefix.rstrip("/").split("/") if prefix):
        raise ValueError("a prefix is names with slashes between them, for example data/2026")
    return f"{prefix.rstrip('/')}/" if prefix else ""


class MountedBucket(Strict):
    """An S3 bucket, or what lies behind a prefix of it, as a folder.

    endpoint is that of any service that speaks S3; without it Amazon's own in the region. access_key, secret_key and
    session_token are names of the tenant's secrets; without them the bucket is spoken to as anybody may.
    """

    bucket: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,62}$")]
    prefix: Annotated[Text, Field(max_length=512), AfterValidator(_folder)] = ""
    endpoint: Annotated[Text, Field(pattern=r"^https?://[^/?#@]+/?$", max_length=255)] | None = None
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = "us-east-1"
    read_only: bool = True
    access_key: SecretName | None = None
    secret_key: SecretName | None = None
    session_token: SecretName | None = None
