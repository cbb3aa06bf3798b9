"""A registry, spoken to by the OCI distribution API v2: manifests and blobs, to pull and to push.

Every blob is checked against its digest before anybody uses it; a connection that breaks is taken up where it broke.
Source: OCI distribution-spec; the token protocol of distribution/docs/spec/auth/token.md.
"""

import base64
import hashlib
import json
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

from common.text import clean_json
from fs.errors import ImageError, ImageInvalid, StoreUnreachable, UnknownImage
from fs.guarded import Access, Guarded
from fs.oci.reference import Reference
from fs.progress import Progress

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_ACCEPTED: Final = ", ".join((INDEX, MANIFEST, _DOCKER_LIST, _DOCKER_MANIFEST))
_DOCUMENT_MAX: Final = 8 << 20
_ATTEMPTS: Final = 5
_FIRST_PAUSE_S: Final = 0.2
_PIECE: Final = 1 << 20
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_TOKEN: Final = re.compile(r"[\x21-\x7e]{0,65536}")
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
    """One repository's registry, for one pull or push. credentials: "USER:PASSWORD"."""

    def __init__(
        self, reference: Reference, access: Access, progress: Progress, *, credentials: str | None = None
    ) -> None:
        self._reference = reference
        scheme = "http" if reference.host in access.plain else "https"
        self._base = f"{scheme}://{reference.host}/v2/{reference.repository}/"
        self._http = Guarded(access)
        self._progress = progress
        self._credentials = credentials
        self._authorization: str | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # ---- requests

    def _headers(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**({"Authorization": self._authorization} if self._authorization else {}), **(more or {})}

    def _document(self, url: str, headers: Mapping[str, str]) -> tuple[bytes, httpx.Headers]:
        """A small document, with patience."""
        for attempt in range(_ATTEMPTS):
            try:
                with self._http.stream("GET", url, headers=self._headers(headers)) as answer:
                    if answer.status_code == httpx.codes.UNAUTHORIZED and self._log_in(answer, "pull"):
                        continue
                    if answer.status_code in _TRY_AGAIN:
                        raise _Broken(f"{self._reference.host} answers {answer.status_code}")
                    self._check(answer)
                    return _bounded(answer, _DOCUMENT_MAX), answer.headers
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
        basic = "Basic " + base64.b64encode((self._credentials or "").encode()).decode()
        if scheme.lower() == "basic" and self._credentials and self._authorization != basic:
            self._authorization = basic
            return True
        if scheme.lower() != "bearer" or "realm" not in fields or self._authorization is not None:
            return False
        actions = "pull,push" if action == "push" else "pull"
        query = {"service": fields.get("service", ""), "scope": f"repository:{self._reference.repository}:{actions}"}
        mark = "&" if "?" in fields["realm"] else "?"
        headers = {"Authorization": basic} if self._credentials else {}
        with self._http.stream("GET", fields["realm"] + mark + urlencode(query), headers=headers) as given:
            if not given.is_success:
                raise ImageError(
                    f"{self._reference.host} gives no access to {self._reference.repository} ({given.status_code})",
                    hint="see its user and password",
                )
            token = _json(_bounded(given, _DOCUMENT_MAX))
        self._authorization = f"Bearer {_header_text(token.get('token') or token.get('access_token') or '')}"
        return True

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
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if version.startswith("sha256:") and digest != version:
            raise ImageInvalid(f"{self._reference.host} sent another manifest than {version[:19]}")
        return _json(body), digest

    def config(self, blob: Blob) -> dict[str, Any]:
        """The image's config."""
        body, _ = self._document(f"{self._base}blobs/{blob.digest}", {})
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
        with self._http.stream("GET", f"{self._base}blobs/{blob.digest}", headers=headers) as answer:
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
            url = f"{place}{mark}digest={digest}"
            with self._http.stream("PUT", url, headers=self._headers(headers), content=pieces) as answer:
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
                answer.read()
                return _Read(answer)
        return self._http.stream(method, url, headers=self._headers(headers), content=body)


class _Read(AbstractContextManager[httpx.Response]):
    """An answer that was read already."""

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer

    def __enter__(self) -> httpx.Response:
        return self._answer

    def __exit__(self, *_: object) -> None:
        return


def _bounded(answer: httpx.Response, most: int) -> bytes:
    found = bytearray()
    for piece in answer.iter_bytes():
        found += piece
        if len(found) > most:
            raise ImageInvalid(f"the registry's answer is longer than {most >> 20} MiB")
    return bytes(found)


def _joined(base: str, location: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError as error:
        raise ImageInvalid(f"the registry sends to {location[:200]!r}, which is no address") from error


def _header_text(token: Any) -> str:
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ImageInvalid("the registry gives a token that no header can hold")
    return token


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = clean_json(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise ImageInvalid("the registry's answer is no JSON") from error
    if not isinstance(found, dict):
        raise ImageInvalid("the registry's answer is no JSON object")
    return found


def _for_this_machine(index: dict[str, Any], name: str) -> str:
    """Out of an index, the digest of the manifest for Linux on x86-64."""
    kinds = []
    for each in index["manifests"] if isinstance(index["manifests"], list) else []:
        platform = each.get("platform") if isinstance(each, dict) else None
        platform = platform if isinstance(platform, dict) else {}
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
