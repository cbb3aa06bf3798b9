"""A registry, spoken to by the OCI distribution API v2: manifests and blobs, to pull and to push.

Every blob is checked against its digest before anybody uses it; a connection that breaks is taken up where it broke.
Source: OCI distribution-spec; the token protocol of distribution/docs/spec/auth/token.md.
"""

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlencode, urljoin

import httpx

from fs import documents
from fs.errors import ImageError, ImageInvalid, StoreUnreachable, UnknownImage
from fs.guarded import Access, Guarded
from fs.oci.login import Login, same_origin
from fs.oci.reference import Reference
from fs.progress import Progress

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_ACCEPTED: Final = ", ".join((INDEX, MANIFEST, _DOCKER_LIST, _DOCKER_MANIFEST))
_TOKEN_MAX: Final = 16 << 10
_ANSWER_MAX: Final = 256 << 10
"""Bytes of an answer that is no document, or one with a token."""

_TOKEN: Final = re.compile(r"[\x21-\x7e]*")
_ATTEMPTS: Final = 5
_FIRST_PAUSE_S: Final = 0.2
_PIECE: Final = 1 << 20
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_TRY_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob as a manifest names it; size in bytes."""

    digest: str
    size: int
    media_type: str

    @classmethod
    def of(cls, raw: Any) -> "Blob":
        """From a descriptor; ImageInvalid for anything else."""
        try:
            found = cls(str(raw["digest"]), int(raw["size"]), str(raw.get("mediaType", "")))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ImageInvalid("the manifest names a blob without digest and size") from error
        if not _DIGEST.fullmatch(found.digest) or found.size < 0:
            raise ImageInvalid(f"the manifest names a blob {found.digest[:80]!r}", hint="only sha256 digests are read")
        return found


class _Broken(Exception):
    """A download that can be taken up again."""


class Registry(AbstractContextManager["Registry"]):
    """One repository's registry, for one pull or push."""

    def __init__(self, reference: Reference, access: Access, progress: Progress, *, login: Login | None = None) -> None:
        self._reference = reference
        scheme = "http" if reference.host in access.plain else "https"
        self._base = f"{scheme}://{reference.host}/v2/{reference.repository}/"
        self._http = Guarded(access)
        self._progress = progress
        self._login = login
        self._authorization: str | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def abort(self) -> None:
        """End what goes on in other threads, and begin nothing more."""
        self._http.abort()

    # ---- requests

    def _headers(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**({"Authorization": self._authorization} if self._authorization else {}), **(more or {})}

    def _document(self, url: str, headers: Mapping[str, str]) -> tuple[bytes, httpx.Headers]:
        """A small document, with patience."""
        for attempt in range(_ATTEMPTS):
            self._progress.check()
            try:
                with self._http.stream("GET", url, headers=self._headers(headers)) as answer:
                    if answer.status_code == httpx.codes.UNAUTHORIZED and self._log_in(answer, "pull"):
                        continue
                    if answer.status_code in _TRY_AGAIN:
                        raise _Broken(f"{self._reference.host} answers {answer.status_code}")
                    self._check(answer)
                    return _bounded(answer, documents.BYTES_MAX), answer.headers
            except (_Broken, StoreUnreachable) as error:
                if attempt == _ATTEMPTS - 1:
                    raise StoreUnreachable(str(error), hint="try again later") from error
                time.sleep(_FIRST_PAUSE_S * 2**attempt)
        raise ImageError(f"{self._reference.host} does not accept the credentials", hint="see its user and password")

    def _check(self, answer: httpx.Response) -> None:
        status, name = answer.status_code, str(self._reference)
        if status == httpx.codes.NOT_FOUND:
            raise UnknownImage(f"there is no {name}", hint="see the repository and the tag")
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise ImageError(f"{self._reference.host} refuses access to {name}", hint="see its user and password")
        if not answer.is_success:
            raise ImageError(f"{self._reference.host} answers {status} to a request about {name}")

    def _log_in(self, answer: httpx.Response, action: str) -> bool:
        """Do what a 401 asks for; False if that was done before."""
        scheme, _, rest = answer.headers.get("www-authenticate", "").partition(" ")
        fields = dict(_CHALLENGE.findall(rest))
        if scheme.lower() == "basic" and self._login is not None and self._authorization != self._login.header:
            self._authorization = self._login.header
            return True
        if scheme.lower() != "bearer" or "realm" not in fields or self._authorization is not None:
            return False
        actions = "pull,push" if action == "push" else "pull"
        query = {"service": fields.get("service", ""), "scope": f"repository:{self._reference.repository}:{actions}"}
        mark = "&" if "?" in fields["realm"] else "?"
        url = fields["realm"] + mark + urlencode(query)
        with self._http.stream("GET", url, headers=self._introduction(url)) as given:
            if not given.is_success:
                raise ImageError(
                    f"{self._reference.host} gives no access to {self._reference.repository} ({given.status_code})",
                    hint="see its user and password",
                )
            raw = _json(_bounded(given, _ANSWER_MAX))
        token = str(raw.get("token") or raw.get("access_token") or "")
        if len(token) > _TOKEN_MAX or not _TOKEN.fullmatch(token):
            raise ImageInvalid(f"{self._reference.host} gives a token that cannot be sent")
        self._authorization = f"Bearer {token}"
        return True

    def _introduction(self, url: str) -> dict[str, str]:
        """What is said of the user where tokens are given; ImageInvalid for a place that may not know the password."""
        if self._login is None:
            return {}
        target = _url(url)
        if not self._login.may_go_to(target, httpx.URL(self._base)):
            raise ImageInvalid(
                f"{self._reference.host} wants the password to be sent to {target.netloc.decode('ascii')[:200]}"
                + (" without TLS" if self._without_tls(target) else ""),
                hint="if that host may know it, name it: auth_host, beside the secret",
            )
        return {"Authorization": self._login.header}

    def _without_tls(self, url: httpx.URL) -> bool:
        """Whether a place that a registry with TLS named has none."""
        return self._base.startswith("https:") and url.scheme != "https"

    # ---- pulling

    def manifest(self) -> tuple[dict[str, Any], str]:
        """The manifest for this machine's kind, out of an index where there is one; and its digest."""
        raw, digest = self._manifest(self._reference.version)
        for _ in range(2):
            if "manifests" not in raw:
                break
            raw, digest = self._manifest(_for_this_machine(raw, str(self._reference)))
        if not isinstance(raw.get("layers"), list) or "config" not in raw:
            raise ImageInvalid(
                f"{self._reference} is no image", hint="its manifest has no layers (schema 1 is not read)"
            )
        return raw, digest

    def _manifest(self, version: str) -> tuple[dict[str, Any], str]:
        body, _ = self._document(f"{self._base}manifests/{version}", {"Accept": _ACCEPTED})
        self._progress.check()  # what was cut off is no wrong manifest
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if version.startswith("sha256:") and digest != version:
            raise ImageInvalid(f"{self._reference.host} sent another manifest than {version[:19]}")
        return _json(body), digest

    def config(self, blob: Blob) -> dict[str, Any]:
        """The image's config."""
        body, _ = self._document(f"{self._base}blobs/{blob.digest}", {})
        self._progress.check()  # what was cut off is no wrong config
        if f"sha256:{hashlib.sha256(body).hexdigest()}" != blob.digest:
            raise ImageInvalid(f"the config of {self._reference} is not what its manifest says")
        return _json(body)

    def download(self, blob: Blob, target: Path) -> None:
        """A blob, whole and checked, into a file; what broke off is taken up again."""
        attempts, had = 0, -1
        with target.open("w+b") as file:
            while True:
                try:
                    self._download_more(blob, file)
                    break
                except (_Broken, StoreUnreachable) as error:
                    attempts = attempts + 1 if file.tell() <= had else 0
                    had = file.tell()
                    if attempts >= _ATTEMPTS:
                        raise StoreUnreachable(
                            f"layer {blob.digest[:19]} cannot be fetched: {error}", hint="try again later"
                        ) from error
                    time.sleep(_FIRST_PAUSE_S * 2**attempts)
            file.seek(0)
            if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != blob.digest:
                raise ImageInvalid(
                    f"layer {blob.digest[:19]} is not what its digest says", hint="the registry sent wrong bytes"
                )

    def _download_more(self, blob: Blob, file: Any) -> None:
        begin = file.tell()
        headers = self._headers({"Range": f"bytes={begin}-"} if begin else {})
        url, left = f"{self._base}blobs/{blob.digest}", blob.size - begin
        self._progress.check()
        with self._http.stream("GET", url, headers=headers, size=left) as answer:
            if answer.status_code == httpx.codes.UNAUTHORIZED and self._log_in(answer, "pull"):
                raise _Broken("log in")
            if answer.status_code in _TRY_AGAIN:
                raise _Broken(f"it answers {answer.status_code}")
            self._check(answer)
            if begin and answer.status_code == _OK:  # it gives no parts
                file.seek(0)
                file.truncate()
            for piece in answer.iter_raw(_PIECE):
                self._progress.check()
                file.write(piece)
                if file.tell() > blob.size:
                    raise ImageInvalid(f"layer {blob.digest[:19]} is longer than its manifest says")
        if file.tell() < blob.size:
            raise _Broken("it broke off")

    # ---- pushing

    def upload(self, digest: str, source: Path) -> None:
        """A blob from a file, unless the registry has it."""
        with self._request("HEAD", f"{self._base}blobs/{digest}") as answer:
            if answer.status_code == _OK:
                return
        with self._request("POST", f"{self._base}blobs/uploads/") as answer:
            self._check(answer)
            place = _joined(self._base, answer.headers.get("location", ""))
        mark = "&" if "?" in place else "?"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(source.stat().st_size)}
        with source.open("rb") as file:
            pieces = iter(lambda: file.read(_PIECE), b"")
            target = _url(f"{place}{mark}digest={digest}")
            own = same_origin(target, httpx.URL(self._base))
            if self._without_tls(target):
                raise ImageInvalid(f"{self._reference.host} wants the layer to be sent elsewhere without TLS")
            headers = self._headers(headers) if own else headers  # what opens the registry is for no other host
            size = source.stat().st_size
            with self._http.stream("PUT", str(target), headers=headers, content=pieces, size=size) as answer:
                self._check(answer)

    def put_manifest(self, body: bytes) -> str:
        """The manifest under the reference's tag: its digest."""
        with self._request(
            "PUT", f"{self._base}manifests/{self._reference.version}", body, {"Content-Type": MANIFEST}
        ) as answer:
            self._check(answer)
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def _request(
        self, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> AbstractContextManager[httpx.Response]:
        with self._http.stream(method, url, headers=self._headers(headers), content=body) as answer:
            again = answer.status_code == httpx.codes.UNAUTHORIZED and self._log_in(answer, "push")
            if not again:
                return _Read(answer)  # nobody looks at more than its head
        return self._http.stream(method, url, headers=self._headers(headers), content=body)


class _Read(AbstractContextManager[httpx.Response]):
    """An answer whose head was read already."""

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer

    def __enter__(self) -> httpx.Response:
        return self._answer

    def __exit__(self, *_: object) -> None:
        return


def _url(text: str) -> httpx.URL:
    try:
        return httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ImageInvalid(f"the registry names {text[:200]!r}, which is not a URL: {error}") from error


def _bounded(answer: httpx.Response, most: int) -> bytes:
    """An answer's bytes as they come: whoever compressed them was not asked to."""
    found = bytearray()
    for piece in answer.iter_raw():
        found += piece
        if len(found) > most:
            raise ImageInvalid(f"the registry's answer is longer than {most >> 10} KiB")
    return bytes(found)


def _joined(base: str, location: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError as error:
        raise ImageInvalid(f"the registry sends to {location[:200]!r}, which is no address") from error


def _json(body: bytes) -> dict[str, Any]:
    found = documents.read(body, "the registry's answer")
    if not isinstance(found, dict):
        raise ImageInvalid("the registry's answer is no JSON object")
    return found


def _for_this_machine(index: dict[str, Any], name: str) -> str:
    """Out of an index, the digest of the manifest for Linux on x86-64."""
    kinds = []
    for each in index["manifests"] if isinstance(index["manifests"], list) else []:
        platform = each.get("platform") if isinstance(each, dict) else None
        if not isinstance(platform, dict):
            platform = {}
        kinds.append(f"{str(platform.get('os'))[:40]}/{str(platform.get('architecture'))[:40]}")
        if kinds[-1] == "linux/amd64":
            return Blob.of(each).digest
    raise ImageInvalid(
        f"{name} is not made for linux/amd64", hint=f"it is made for: {', '.join(kinds[:40]) or 'nothing'}"
    )


def layers_of(manifest: dict[str, Any]) -> Iterator[Blob]:
    """Its layers, the lowest first."""
    for raw in manifest["layers"]:
        yield Blob.of(raw)
