"""Stores elsewhere: an S3 bucket, another isobox node, a folder. Opened by their URL."""

import os
import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import urllib3

from fs.errors import ImageInvalid, StoreCorrupt, StoreUnreachable
from fs.store.backend import DOCUMENT_MAX, Backend, Directory

_CONNECT_S: Final = 5.0
_READ_S: Final = 8.0
_CONNECTIONS: Final = 16
_PIECE: Final = 1 << 16
_WHOLE_S: Final = 30.0
_WHOLE_BYTES_S: Final = 64 << 10
"""Bytes a second that an answer makes at least, beside the first half minute."""

_PAGES_MAX: Final = 10_000
_AGAIN: Final = "pull or publish the image again"


def open_store(url: str) -> Backend:
    """The store at s3://BUCKET/PREFIX, http(s)://HOST:PORT (a node) or /FOLDER; ImageInvalid for anything else.

    S3 by the usual AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL; a node by its operator's
    key in ISOBOX_STORES_KEY.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        return Bucket(parts.netloc, parts.path.strip("/"))
    if parts.scheme in ("http", "https") and parts.hostname:
        return Peer(url.rstrip("/"), os.environ.get("ISOBOX_STORES_KEY", ""))
    if url.startswith("/"):
        return Directory(Path(url))
    raise ImageInvalid(f"{url!r} is no store", hint="write s3://BUCKET/PREFIX, http://HOST:PORT or /FOLDER")


class Bucket:
    """An S3 bucket. An object appears whole, by S3's own rules."""

    def __init__(self, bucket: str, prefix: str) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise ImageInvalid("S3 needs boto3", hint="pip install 'isobox[s3]'") from error
        config = Config(
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
            retries={"max_attempts": 2, "mode": "standard"},
            max_pool_connections=32,
        )
        # Each its own session: the default one is shared by all threads, and not made for that.
        region = os.environ.get("AWS_REGION", "us-east-1")
        self._client: Any = boto3.session.Session().client("s3", region_name=region, config=config)
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    def _call(self, name: str, key: str, **parts: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, name)(Bucket=self._bucket, Key=self._prefix + key, **parts)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404", "NotFound"):
                return None
            raise StoreUnreachable(
                f"the bucket {self._bucket} answers {code}", hint="see its name and the keys"
            ) from error
        except BotoCoreError as error:
            raise StoreUnreachable(f"the bucket {self._bucket} does not answer: {error}") from error

    def put(self, key: str, source: Path) -> None:
        """See Backend."""
        with source.open("rb") as file:
            self._call("put_object", key, Body=file)

    def get(self, key: str) -> bytes | None:
        """See Backend."""
        found = self._call("get_object", key)
        return None if found is None else self._body(found, DOCUMENT_MAX)

    def _body(self, found: Any, most: int) -> bytes:
        from botocore.exceptions import BotoCoreError

        try:
            return _bounded(found["Body"].iter_chunks(_PIECE), most, f"the bucket {self._bucket}")
        except (BotoCoreError, urllib3.exceptions.HTTPError) as error:
            raise StoreUnreachable(f"the bucket {self._bucket} broke off: {error}") from error

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See Backend."""
        found = self._call("get_object", key, Range=f"bytes={offset}-{offset + length - 1}")
        if found is None:
            raise StoreCorrupt(f"the bucket {self._bucket} lacks {key}", hint=_AGAIN)
        return self._body(found, length)

    def delete(self, key: str) -> None:
        """See Backend."""
        self._call("delete_object", key)

    def keys(self, prefix: str) -> Iterator[str]:
        """See Backend."""
        more: dict[str, str] = {}
        for _ in range(_PAGES_MAX):
            found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix + prefix, **more)
            for each in found.get("Contents", []):
                yield str(each["Key"]).removeprefix(self._prefix)
            if not found.get("IsTruncated"):
                return
            more = {"ContinuationToken": found["NextContinuationToken"]}
        raise StoreUnreachable(f"the bucket {self._bucket} lists more than {_PAGES_MAX} pages")

    def close(self) -> None:
        """See Backend."""
        self._client.close()


class Peer:
    """Another node: its images, to be read (`GET /v1/store/KEY`)."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = urllib3.Timeout(connect=_CONNECT_S, read=_READ_S)
        # Not httpx: the process of lazy images begins with this, and that takes a tenth of a second to import.
        self._http = urllib3.PoolManager(headers=headers, timeout=timeout, retries=False, maxsize=_CONNECTIONS)
        self._url = url

    def _get(self, key: str, headers: dict[str, str], most: int) -> bytes | None:
        headers = {"Accept-Encoding": "identity", **self._http.headers, **headers}
        url = f"{self._url}/v1/store/{quote(key)}"
        try:
            with self._http.request("GET", url, headers=headers, preload_content=False, redirect=False) as answer:
                if 200 <= answer.status < 300:
                    pieces = answer.stream(_PIECE, decode_content=False)
                    return _bounded(pieces, most, f"the node {self._url}")
        except urllib3.exceptions.HTTPError as error:
            raise StoreUnreachable(f"the node {self._url} does not answer: {error or type(error).__name__}") from error
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        refused = answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        hint = "set ISOBOX_STORES_KEY to its operator's key" if refused else ""
        raise StoreUnreachable(f"the node {self._url} answers {answer.status}", hint=hint)

    def put(self, key: str, source: Path) -> None:
        """Refused: a node's store is written by that node."""
        raise ImageInvalid(f"{self._url} is a node, and written by nobody else", hint="publish to a bucket")

    def get(self, key: str) -> bytes | None:
        """See Backend."""
        return self._get(key, {}, DOCUMENT_MAX)

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See Backend."""
        found = self._get(key, {"Range": f"bytes={offset}-{offset + length - 1}"}, length)
        if found is None:
            raise StoreCorrupt(f"the node {self._url} lacks {key}", hint=_AGAIN)
        return found

    def delete(self, key: str) -> None:
        """Refused, as `put` is."""
        self.put(key, Path())

    def keys(self, prefix: str) -> Iterator[str]:
        """None: a node tells of what it is asked for by name."""
        return iter(())

    def close(self) -> None:
        """See Backend."""
        self._http.clear()


def _bounded(pieces: Iterable[bytes], most: int, who: str) -> bytes:
    """An answer; StoreUnreachable where it has more bytes than were asked for, or comes ever more slowly."""
    found, begun = bytearray(), time.monotonic()
    for piece in pieces:
        found += piece
        if len(found) > most:
            raise StoreUnreachable(f"{who} answers with more than was asked for")
        if time.monotonic() - begun > _WHOLE_S + len(found) / _WHOLE_BYTES_S:
            raise StoreUnreachable(f"{who} answers too slowly")
    return bytes(found)
