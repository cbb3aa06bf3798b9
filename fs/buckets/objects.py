"""One bucket, spoken to by boto3 over connections that are checked (`fs.guarded`). For threads; blocking.

Errors say what read(2) would: ENOENT, EACCES, ESTALE for an object that was replaced meanwhile, EIO for a bucket that
does not answer.

boto3 signs, tries again and follows a bucket to its region. What it would parse whole, it gets small: an answer of a
few KiB, or of the bytes that were asked for. Pages of listings are taken apart here while they come (see
`fs.buckets.pages`), and what is over with a sandbox is ended in whichever thread it goes on.
"""

import errno
import io
import os
import re
import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from fs.buckets.pages import Facts, Page, PageInvalid, PageParser
from fs.buckets.pages import facts as checked_facts
from fs.errors import BucketFailed, ImageError
from fs.guarded import Access, Guarded

_LARGE: Final = 64 << 20
_PART: Final = 32 << 20
_DOCUMENT_MAX: Final = 64 << 10
"""Bytes of an answer that boto3 parses."""

_PIECE: Final = 1 << 18
_LIST_MAX: Final = 200_000
_LIST_BYTES_MAX: Final = 16 << 20
_PAGES_MAX: Final = 2000
_LIST_S: Final = 120.0
_ATTEMPTS: Final = 3
_READ_TIMEOUT_S: Final = 10.0
_LISTS: Final = "ListObjectsV2"
_READS: Final = frozenset({_LISTS, "GetObject"})
"""What is asked for whoever reads, and is over with the sandbox; the rest stores what was written."""

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d+)")
_ERRNO: Final = {
    "NoSuchKey": errno.ENOENT,
    "404": errno.ENOENT,
    "NotFound": errno.ENOENT,
    "NoSuchBucket": errno.ENOENT,
    "AccessDenied": errno.EACCES,
    "403": errno.EACCES,
    "Forbidden": errno.EACCES,
    "InvalidAccessKeyId": errno.EACCES,
    "SignatureDoesNotMatch": errno.EACCES,
    "ExpiredToken": errno.EACCES,
    "PreconditionFailed": errno.ESTALE,
    "412": errno.ESTALE,
    "InvalidRange": errno.EINVAL,
    "EntityTooLarge": errno.EFBIG,
    "KeyTooLongError": errno.ENAMETOOLONG,
}


@dataclass(frozen=True, slots=True)
class Keys:
    """A bucket's credentials; none for one that anybody may read."""

    access: str
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a mount's objects lie: prefix "" or "A/B/"; endpoint is a URL, "" for Amazon's own."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = "us-east-1"


class _Body(io.BytesIO):
    """As botocore reads an answer."""

    def stream(self, amt: int = _PIECE, **_: object) -> Iterator[bytes]:
        while piece := self.read(amt):
            yield piece


class _Wire:
    """Sends botocore's requests over checked connections, in botocore's own `before-send`."""

    def __init__(self, access: Access) -> None:
        self._reads = Guarded(access, read_timeout_s=_READ_TIMEOUT_S)
        self._writes = Guarded(access, read_timeout_s=_READ_TIMEOUT_S)
        self._local = threading.local()

    def __call__(self, request: Any, event_name: str, **_: object) -> Any:
        from botocore.awsrequest import AWSResponse
        from botocore.exceptions import EndpointConnectionError

        headers = {
            name: value.decode("latin-1") if isinstance(value, bytes) else str(value)
            for name, value in request.headers.items()
        }
        operation = event_name.rpartition(".")[2]
        http = self._reads if operation in _READS else self._writes
        if http.aborted:
            raise _stopped()
        asked = _RANGE.fullmatch(headers.get("Range", ""))
        expected = int(asked[2]) - int(asked[1]) + 1 if asked is not None else _DOCUMENT_MAX
        size = int(headers.get("Content-Length") or 0) + expected
        self._local.page = None
        try:
            url = httpx.URL(request.url)
            with http.send(request.method, url, headers, _content(request.body), size=size) as answer:
                if operation == _LISTS and answer.status_code == httpx.codes.OK:
                    self._local.page = _page(answer)
                    body = _Body(b"<ListBucketResult/>")
                else:
                    body = _Body(_bounded(answer, expected if answer.is_success else _DOCUMENT_MAX))
                return AWSResponse(request.url, answer.status_code, answer.headers, body)
        except httpx.HTTPError as error:  # botocore tries again after this one
            if http.aborted:
                raise _stopped() from error
            raise EndpointConnectionError(endpoint_url=str(error) or type(error).__name__) from error

    def page(self) -> Page:
        """What the request for a page brought that this thread made last."""
        page: Page | None = self._local.page
        if page is None:
            raise BucketFailed("the bucket answers with no listing", errno=errno.EIO)
        return page

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Let the reads that this thread makes inside the block take so long together."""
        return self._reads.deadline(seconds)

    def abort(self, *, writes: bool) -> None:
        """End reads, and with writes all."""
        self._reads.abort()
        if writes:
            self._writes.abort()

    def close(self) -> None:
        self._reads.close()
        self._writes.close()


def _stopped() -> BucketFailed:
    return BucketFailed("nobody reads from the bucket any more", errno=errno.ECANCELED)


def _bounded(answer: httpx.Response, most: int) -> bytes:
    body = bytearray()
    for piece in answer.iter_raw():
        body += piece
        if len(body) > most:
            raise BucketFailed("the bucket answers with more than was asked for", errno=errno.EIO)
    return bytes(body)


def _page(answer: httpx.Response) -> Page:
    parser = PageParser()
    try:
        for piece in answer.iter_raw():
            parser.feed(piece)
        return parser.page()
    except PageInvalid as error:
        raise BucketFailed(f"the bucket answers with no listing: {error}", errno=errno.EIO) from error


def _content(body: Any) -> Iterator[bytes] | bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    if isinstance(body, str | bytearray):
        return body.encode() if isinstance(body, str) else bytes(body)

    def pieces() -> Iterator[bytes]:
        while piece := body.read(_PIECE):
            yield piece

    return pieces()


class Objects:
    """See the module. Keys are those of the bucket, the prefix included."""

    def __init__(self, place: Place, keys: Keys | None, access: Access) -> None:
        """BucketFailed where S3 cannot be spoken, or not to there."""
        try:
            import boto3
            from botocore import UNSIGNED
            from botocore.config import Config
        except ImportError as error:
            raise BucketFailed("this server speaks no S3", errno=errno.EIO, hint="pip install 'isobox[s3]'") from error
        self.place = place
        endpoint = place.endpoint or f"https://s3.{place.region}.amazonaws.com"
        host = httpx.URL(endpoint).netloc.decode("ascii")
        if endpoint.startswith("http://") and not access.is_plain(host):
            raise BucketFailed(
                f"{endpoint} is spoken to without TLS",
                errno=errno.EIO,
                hint=f"use https://, or let the operator allow it with {access.setting}=http://{host}",
            )
        config = Config(
            signature_version="s3v4" if keys is not None else UNSIGNED,
            retries={"max_attempts": _ATTEMPTS, "mode": "standard"},
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with _making:
            self._client: Any = boto3.session.Session().client(
                "s3",
                endpoint_url=endpoint,
                region_name=place.region,
                config=config,
                aws_access_key_id=keys.access if keys else "none",
                aws_secret_access_key=keys.secret if keys else "none",
                aws_session_token=keys.token if keys else None,
            )
        self._wire = _Wire(access)
        self._client.meta.events.register("before-send.s3", self._wire)

    def abort(self, *, writes: bool) -> None:
        """End what reads in other threads, with writes also what stores something, and begin nothing of it any more."""
        self._wire.abort(writes=writes)

    def close(self) -> None:
        """Close its connections."""
        self.abort(writes=True)
        self._client.close()
        self._wire.close()

    def _call(self, name: str, **parts: Any) -> Any:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, name)(Bucket=self.place.bucket, **parts)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            raise self._failed(f"answers {code}", _ERRNO.get(code, errno.EIO)) from error
        except (BotoCoreError, Boto3Error) as error:
            raise self._failed(f"does not answer: {error}", errno.EIO) from error
        except ImageError as error:  # what `fs.guarded` refuses
            raise BucketFailed(error.detail, errno=errno.EIO, hint=error.hint) from error

    def _failed(self, what: str, number: int) -> BucketFailed:
        return BucketFailed(f"bucket {self.place.bucket} {what}", errno=number, hint="see its name, keys and endpoint")

    def check(self, within_s: float) -> None:
        """Whether it can be listed, within so many seconds."""
        with self._wire.deadline(within_s):
            self._call("list_objects_v2", Prefix=self.place.prefix, MaxKeys=1)

    def head(self, key: str) -> Facts | None:
        """What an object is; None if there is none."""
        try:
            return _facts(self._call("head_object", Key=key))
        except BucketFailed as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def has_below(self, folder: str, *, besides: str = "") -> bool:
        """Whether there is any object whose key begins so (it ends with a slash), other than that one."""
        self._call("list_objects_v2", Prefix=folder, MaxKeys=2)
        return any(key != besides for key, _ in self._wire.page().objects)

    def pages(self, folder: str) -> Generator[Page, None, None]:
        """What lies directly below a folder ("" or with a slash at its end), page by page.

        EFBIG beyond 200,000 names, 16 MiB of names or 2,000 pages; EIO for a listing that goes in a circle or takes
        more than two minutes.
        """
        names, size, more = 0, 0, ""
        with self._wire.deadline(_LIST_S):
            for _ in range(_PAGES_MAX):
                goes_on = {"ContinuationToken": more} if more else {}
                self._call("list_objects_v2", Prefix=folder, Delimiter="/", **goes_on)
                page = self._wire.page()
                names += len(page.objects) + len(page.folders)
                size += sum(len(key) for key, _ in page.objects) + sum(map(len, page.folders))
                if names > _LIST_MAX or size > _LIST_BYTES_MAX:
                    most = f"{_LIST_MAX} names or {_LIST_BYTES_MAX >> 20} MiB of names"
                    raise self._failed(f"holds more than {most} in {folder or '/'}", errno.EFBIG)
                yield page
                if not page.more:
                    return
                if page.more == more:
                    raise self._failed(f"lists {folder or '/'} in a circle", errno.EIO)
                more = page.more
        raise self._failed(f"needs more than {_PAGES_MAX} pages for {folder or '/'}", errno.EFBIG)

    def read(self, key: str, offset: int, length: int, etag: str) -> bytes:
        """A part of an object as it was when it had that etag; ESTALE if it was replaced."""
        asked = {"Key": key, "Range": f"bytes={offset}-{offset + length - 1}", "IfMatch": etag}
        try:
            return bytes(self._call("get_object", **asked)["Body"].read())
        except BucketFailed as error:
            if error.errno == errno.EINVAL:  # beyond its end
                return b""
            raise

    def put(self, key: str, file: int, size: int) -> None:
        """Let a file's bytes be the object; in parts where they are many. It appears whole or not at all."""
        if size <= _LARGE:
            self._call("put_object", Key=key, Body=_Kept(file), ContentLength=size)
            return
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_threshold=_LARGE, multipart_chunksize=_PART, max_concurrency=4)
        self._call("upload_fileobj", Key=key, Fileobj=_Kept(file), Config=config)

    def put_empty(self, key: str) -> None:
        """An object of no bytes."""
        self._call("put_object", Key=key, Body=b"")

    def copy(self, source: str, target: str) -> None:
        """Copy within the bucket, by the bucket."""
        self._call("copy", CopySource={"Bucket": self.place.bucket, "Key": source}, Key=target)

    def delete(self, key: str) -> None:
        """Delete; no error if there is none."""
        self._call("delete_object", Key=key)


class _Kept(io.RawIOBase):
    """A file's descriptor, as boto3 reads it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._at = begin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        data = os.pread(self._fd, _PART if size is None or size < 0 else size, self._at)
        self._at += len(data)
        return data


def _facts(raw: Any) -> Facts:
    try:
        return checked_facts(int(raw["ContentLength"]), raw["LastModified"].timestamp(), str(raw.get("ETag", "")))
    except (PageInvalid, KeyError, AttributeError, OverflowError) as error:
        raise BucketFailed(f"the bucket does not say what an object is: {error}", errno=errno.EIO) from error


_making: Final = threading.Lock()
"""boto3 makes one client at a time."""
