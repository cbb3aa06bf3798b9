import hashlib
import io
import ssl
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import Memory

from fs import authorities
from fs.tree import Node, Tree
from fs.treefiles import TreeFiles
from netpolicy.certificates import new_authority

DEBIAN = b"etc/ssl/certs/ca-certificates.crt"
RHEL = b"etc/pki/tls/certs/ca-bundle.crt"
LOCAL = b"usr/local/share/ca-certificates"


def pem(certificate: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(certificate).encode()


ONE, TWO, PUBLIC = (authorities.parse(new_authority(name)[0].encode())[0] for name in ("one", "two", "public"))


class Image:
    def __init__(self, *, bundle: bytes | None = None, at: bytes = DEBIAN, dpkg: bool = True) -> None:
        self.tree, self.sink = Tree(), Memory()
        if bundle is not None:
            self.put(at, bundle)
        if dpkg:
            self.put(b"var/lib/dpkg/status", b"")

    def put(self, path: bytes, contents: bytes) -> None:
        self.tree.put(path, Node("file", 0o644, pieces=self.sink.add(io.BytesIO(contents))))

    def lay_in(self, *certificates: bytes) -> "Image":
        authorities.lay_in(TreeFiles(self.tree, self.sink, self.sink.read), certificates)  # type: ignore[arg-type]
        return self

    def text(self, path: bytes) -> bytes:
        node = self.tree.find(path)
        return b"" if node is None else self.sink.read(node)

    def trusts(self, path: bytes = DEBIAN) -> list[bytes]:
        return list(authorities.parse(self.text(path)))

    def local(self) -> list[bytes]:
        folder = self.tree.find(LOCAL)
        return [] if folder is None else [self.text(LOCAL + b"/" + name) for name in sorted(folder.children)]


def test_a_bundle_gets_what_it_lacks_and_debians_folder_too() -> None:
    image = Image(bundle=pem(PUBLIC) + pem(TWO)).lay_in(ONE, TWO)
    assert image.trusts() == [PUBLIC, TWO, ONE]
    assert image.local() == [pem(ONE)]


def test_others_take_the_place_of_earlier_ones_and_none_leaves_none() -> None:
    untouched = pem(PUBLIC)
    image = Image(bundle=untouched).lay_in(ONE)
    assert image.lay_in(TWO).trusts() == [PUBLIC, TWO]
    assert image.local() == [pem(TWO)]
    image.lay_in()
    assert image.text(DEBIAN) == untouched
    assert image.local() == []


def test_what_update_ca_certificates_made_of_them_goes_too() -> None:
    image = Image(bundle=pem(PUBLIC)).lay_in(ONE)
    image.put(DEBIAN, pem(PUBLIC) + pem(ONE))  # made anew: without marks
    assert image.lay_in(ONE).trusts() == [PUBLIC, ONE]
    assert image.lay_in(TWO).trusts() == [PUBLIC, TWO]


def test_an_image_without_a_bundle_gets_one_where_the_variables_say() -> None:
    assert Image(dpkg=False).lay_in(ONE).trusts() == [ONE]
    image = Image(bundle=pem(PUBLIC), at=RHEL, dpkg=False).lay_in(ONE)
    assert image.trusts(RHEL) == image.trusts() == [PUBLIC, ONE]
    assert authorities.BUNDLE.lstrip("/").encode() == DEBIAN
    assert Image(dpkg=False).lay_in().tree.find(b"etc") is None
    assert Image(dpkg=False).lay_in(ONE).lay_in().tree.find(DEBIAN) is None


def test_a_bundle_that_is_a_link_is_followed() -> None:
    image = Image(bundle=pem(PUBLIC), at=b"etc/pki/extracted/bundle.pem", dpkg=False)
    image.tree.put(RHEL, Node("symlink", 0o777, target=b"../../extracted/bundle.pem"))
    image.lay_in(ONE)
    link = image.tree.find(RHEL)
    assert link is not None
    assert link.kind == "symlink"
    assert image.trusts(b"etc/pki/extracted/bundle.pem") == [PUBLIC, ONE]


def test_a_damaged_bundle_is_no_failure_and_keeps_what_it_holds() -> None:
    damaged = b"-----BEGIN CERTIFICATE-----\nQQ===Q\n-----END CERTIFICATE-----"
    text = Image(bundle=damaged).lay_in(ONE).text(DEBIAN)
    assert text.startswith(damaged + b"\n")
    assert pem(ONE) in text


@pytest.mark.parametrize("text", [b"", b"-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n", b"\xff\0"])
def test_a_file_without_certificates_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="expected certificates in PEM"):
        authorities.parse(text)


def test_the_stamp_is_that_of_the_certificates() -> None:
    stamps = [authorities.stamp(each) for each in ((), (ONE,), (TWO,), (ONE, TWO))]
    assert len(set(stamps)) == 4
    assert authorities.stamp(authorities.parse(b"# words\n" + pem(ONE) + pem(ONE))) == authorities.stamp((ONE,))


@given(st.lists(st.lists(st.sampled_from([ONE, TWO, PUBLIC]), unique=True), max_size=4), st.booleans())
def test_whatever_was_laid_in_before_the_last_set_counts(sets: Sequence[Sequence[bytes]], has_bundle: bool) -> None:
    image = Image(bundle=pem(PUBLIC) if has_bundle else None)
    for certificates in sets:
        image.lay_in(*certificates)
    last = set(sets[-1]) if sets else set()
    present = image.text(DEBIAN)
    expected = last | ({PUBLIC} if has_bundle else set())
    assert (set(authorities.parse(present)) if present else set()) == expected
    for certificate in last - {PUBLIC}:
        assert hashlib.sha256(certificate).hexdigest()[:16] in str(image.tree.find(LOCAL).children)  # type: ignore[union-attr]
