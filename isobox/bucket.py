"""S3 buckets as folders of a sandbox.

bucket = isobox.Bucket("data", prefix="2026", access_key="s3-id", secret_key="s3-key")  # names of secrets
with isobox.Sandbox.create(volumes={"/data": bucket}) as sandbox:
    print(sandbox.exec("ls", "/data").stdout)
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Bucket:
    """A bucket, or what lies behind a prefix of it.

    endpoint: any service that speaks S3; by default Amazon's in the region. access_key, secret_key and session_token
    are names of secrets that the server keeps (`isobox secret set`); the sandbox never sees their values.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str = "us-east-1"
    read_only: bool = True
    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None

    def as_asked(self) -> dict[str, Any]:
        """As the API takes it."""
        return {name: value for name, value in asdict(self).items() if value is not None}
