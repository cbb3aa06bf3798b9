import contextlib
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.buckets.pages import Facts, Page, PageInvalid, PageParser

KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
OBJECTS = st.lists(st.tuples(KEYS, st.integers(0, 10**18 - 1), st.text("0123456789abcdef", max_size=32)), max_size=20)


def page(inner: str, *, more: str = "", coded: bool = True) -> bytes:
    kind = "<EncodingType>url</EncodingType>" if coded else ""
    goes_on = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    return f"{head}<Name>b</Name>{kind}{goes_on}{inner}</ListBucketResult>".encode()


def contents(key: str, size: object = 1, etag: str = "e", when: str = "2026-01-02T03:04:05.000Z") -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{when}</LastModified><ETag>&quot;{etag}&quot;</ETag>"
        f"<Size>{size}</Size><Owner><ID>o</ID></Owner><StorageClass>STANDARD</StorageClass></Contents>"
    )


def parsed(data: bytes, step: int = 1 << 20) -> Page:
    parser = PageParser()
    for begin in range(0, len(data), step):
        parser.feed(data[begin : begin + step])
    return parser.page()


@given(objects=OBJECTS, folders=st.lists(KEYS, max_size=5), step=st.integers(1, 500), more=st.sampled_from(["", "tok"]))
def test_a_page_is_what_was_said_however_it_is_cut(
    objects: list[tuple[str, int, str]], folders: list[str], step: int, more: str
) -> None:
    inner = "".join(contents(escape(quote_plus(key)), size, etag) for key, size, etag in objects)
    inner += "".join(f"<CommonPrefixes><Prefix>{quote_plus(each)}</Prefix></CommonPrefixes>" for each in folders)
    found = parsed(page(inner, more=more), step)
    assert found.objects == [(key, Facts(size, 1767323045, f'"{etag}"')) for key, size, etag in objects]
    assert (found.folders, found.more) == (folders, more)


def test_keys_are_as_they_are_where_they_are_not_coded() -> None:
    assert parsed(page(contents("a+b%20&amp;c"), coded=False)).objects[0][0] == "a+b%20&c"


@pytest.mark.parametrize(
    ("when", "seconds"),
    [
        ("2026-01-02T03:04:05Z", 1767323045),
        ("Fri, 02 Jan 2026 03:04:05 GMT", 1767323045),
        ("0001-01-01T00:00:00Z", 0),
        ("yesterday", 0),
        ("", 0),
        ("9999-99-99", 0),
    ],
)
def test_moments(when: str, seconds: int) -> None:
    assert parsed(page(contents("k", when=when))).objects[0][1].mtime_s == seconds


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (page("<a/>" * 30_000), "more than 24000 elements"),
        (page("<a>" * 10 + "</a>" * 10), "deep"),
        (page(f"<Name>{'x' * 9000}</Name>"), "a text of more than"),
        (page("".join(contents(str(n)) for n in range(1001))), "more than 1000 names"),
        (page("<a " + " ".join(f'a{n}=""' for n in range(40_000)) + "/>"), "a tag without an end"),
        (page(f"<!-- {'x' * 200_000} -->"), "a tag without an end"),
        (page(" " * (9 << 20)), "more than"),
        (b'<!DOCTYPE x [<!ENTITY a "b">]>' + page(""), "a document type"),
        (page("&nothing;"), "no XML"),
        (b"\xff\xfe", "no XML"),
        (b'<?xml version="1.0" encoding="nothing-known"?><a/>', "no XML"),
        (page("")[:-5], "no XML"),
        (b"", "no XML"),
        (page(contents("k", size=-1)), "-1"),
        (page(contents("k", size="9" * 5000)), "bytes"),
        (page(contents("k", size="١")), "bytes"),
        (page(contents("k", etag="e" * 300)), "an etag of"),
        (page(contents("")), "a name that is none"),
        (page("<CommonPrefixes></CommonPrefixes>"), "a name that is none"),
        (page("<IsTruncated>true</IsTruncated>"), "goes on nowhere"),
    ],
)
def test_what_no_bucket_answers(answer: bytes, words: str) -> None:
    with pytest.raises(PageInvalid, match=words):
        parsed(answer)


@given(st.binary(max_size=300))
def test_rubbish_is_refused(data: bytes) -> None:
    for answer in (data, b"<ListBucketResult>" + data + b"</ListBucketResult>"):
        with contextlib.suppress(PageInvalid):
            assert isinstance(parsed(answer), Page)
