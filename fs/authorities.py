"""Certificates of a machine's own authorities, laid into images: a company's proxy, a private package index. Pure.

Every bundle that a distribution keeps gets those that it lacks, between two marks, so that others can take their place
later. Debian's own folder for local authorities gets them too: `update-ca-certificates` makes the bundle anew from it,
and a JRE's set-up its key store.
"""

import base64
import binascii
import hashlib
import re
import ssl
from collections.abc import Container, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fs.treefiles import TreeFiles

BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
)
BUNDLE: Final = BUNDLES[0]
"""Where every image with authorities has a bundle, whatever its distribution."""

VARIABLES: Final = (
    "SSL_CERT_FILE",  # OpenSSL, Python, Go, uv, Ruby, rustls
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",  # Node, npm
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "DENO_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
)
"""The variables by which programs that do not read the distribution's bundle are told of one."""

_BEGIN: Final = b"# isobox: authorities of the machine\n"
_END: Final = b"# isobox: end\n"
_OURS: Final = re.compile(re.escape(_BEGIN) + rb".*?" + re.escape(_END), re.DOTALL)
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----\n?")
_LOCAL: Final = b"usr/local/share/ca-certificates"
_LOCAL_NAME: Final = re.compile(rb"isobox-[0-9a-f]{16}\.crt")


def parse(text: bytes) -> tuple[bytes, ...]:
    """Return the certificates of a PEM file, DER each, none twice; ValueError if it holds none or a damaged one."""
    try:
        certificates = x509.load_pem_x509_certificates(text)
    except ValueError as error:
        raise ValueError(f"expected certificates in PEM: {error}") from error
    return tuple(dict.fromkeys(certificate.public_bytes(Encoding.DER) for certificate in certificates))


def stamp(authorities: Sequence[bytes]) -> str:
    """Return a short name of a set of authorities: images record with which they were prepared."""
    return hashlib.sha256(b"".join(hashlib.sha256(each).digest() for each in authorities)).hexdigest()[:16]


def lay_in(files: TreeFiles, authorities: Sequence[bytes]) -> None:
    """Have a tree's programs accept these authorities, and none that were laid in before and are not among them."""
    local = _local_certificates(files)
    withdrawn = {certificate for certificate in local.values() if certificate not in authorities}
    for name, certificate in local.items():
        if certificate in withdrawn:
            files.tree.remove(_LOCAL + b"/" + name)
    bundles = {path: text for path in BUNDLES if (text := _read_bundle(files, path)) is not None}
    bare = {path: _without(_OURS.sub(b"", text), withdrawn) for path, text in bundles.items()}
    if authorities and BUNDLE not in bare:
        bare[BUNDLE] = next(iter(bare.values()), b"")
    lacking: dict[bytes, None] = {}
    for path, text in bare.items():
        present = set(_certificates(text))
        missing = [certificate for certificate in authorities if certificate not in present]
        lacking.update(dict.fromkeys(missing))
        whole = text + (_BEGIN + b"".join(map(_pem, missing)) + _END if missing else b"")
        name = path.lstrip("/").encode()
        if not whole and bundles.get(path):  # we made it, and nothing of it is left
            files.tree.remove(files.resolve(name) or name)
        elif whole != bundles.get(path):
            files.rewrite(files.resolve(name) or name, whole, 0o644)
    if files.tree.find(b"var/lib/dpkg") is not None:
        for certificate in lacking:
            files.write(_LOCAL + b"/" + _local_name(certificate), _pem(certificate), 0o644)


def _local_certificates(files: TreeFiles) -> dict[bytes, bytes]:
    """Return what `lay_in` wrote into the folder for local authorities, by name."""
    folder = files.tree.find(_LOCAL)
    names = [name for name in (folder.children if folder is not None else ()) if _LOCAL_NAME.fullmatch(name)]
    return {name: (_certificates(files.read(_LOCAL + b"/" + name) or b"") or [b""])[0] for name in names}


def _local_name(certificate: bytes) -> bytes:
    return f"isobox-{hashlib.sha256(certificate).hexdigest()[:16]}.crt".encode()


def _read_bundle(files: TreeFiles, path: str) -> bytes | None:
    place = files.resolve(path.lstrip("/").encode())
    text = files.read(place) if place is not None else None
    return text if not text or text.endswith(b"\n") else text + b"\n"


def _without(text: bytes, certificates: Container[bytes]) -> bytes:
    return _PEM.sub(lambda match: b"" if _decoded(match[1]) in certificates else match[0], text)


def _certificates(text: bytes) -> list[bytes]:
    """Return the certificates of an image's own file; what is damaged in it is left out."""
    return [certificate for body in _PEM.findall(text) if (certificate := _decoded(body)) is not None]


def _decoded(body: bytes) -> bytes | None:
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        return None


def _pem(certificate: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(certificate).encode()
