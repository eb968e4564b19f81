from __future__ import annotations

import gzip
import random
import sys
from pathlib import Path

import pytest
import zstandard

from pipeline.document import BadRecord, Document, Record, SourceError, UnwantedRecord
from pipeline.source_config import WarcConfig
from pipeline.sources import warc

PARAGRAPH = "This paragraph is long enough to be what the page is about, and it says nothing that matters at all. "
PAGE = (
    f"<html><head><title>T</title></head><body><nav>Home About</nav><article><h1>Heading</h1><p>{PARAGRAPH * 3}</p>"
    "</article></body></html>"
).encode()


@pytest.fixture(autouse=True)
def _web() -> None:
    pytest.importorskip("warcio", reason="needs the extra web")
    pytest.importorskip("trafilatura", reason="needs the extra web")


def record(kind: str, number: int, body: bytes, *, content_type: str = "text/plain") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"WARC-Target-URI: http://example.com/{number}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def response(number: int, body: bytes, content_type: str = "text/html; charset=utf-8", **fields: str) -> bytes:
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    http = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode()
    return record("response", number, http + body, content_type="application/http; msgtype=response")


RECORDS = [
    record("warcinfo", 0, b"software: none", content_type="application/warc-fields"),
    record("request", 1, b"GET / HTTP/1.1\r\n\r\n", content_type="application/http; msgtype=request"),
    response(2, PAGE),
    response(3, b"\x89PNG", "image/png"),
    response(4, b"<html><body></body></html>"),
    record("conversion", 5, "naïve plain text".encode()),
    record("conversion", 6, b"\xff"),
]


def read(path: Path) -> list[Record]:
    config = WarcConfig(type="warc", name="web", files=(str(path),))
    return [r for piece in warc.find_pieces(config, unit_size_bytes=1) for r in warc.read_piece(config, piece)]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_main_texts_are_documents_and_the_rest_is_counted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    # a gzip member a record, as web archives have them
    path.write_bytes(b"".join(map(gzip.compress, RECORDS)) if path.suffix == ".gz" else b"".join(RECORDS))
    page, image, empty, plain, broken = read(path)
    assert isinstance(page, Document)
    assert (page.document_id, page.url) == ("<urn:uuid:2>", "http://example.com/2")
    assert PARAGRAPH.strip() in page.text
    assert "Home" not in page.text
    assert isinstance(image, UnwantedRecord)
    assert (image.reason, image.example) == ("not_html", "image/png: http://example.com/3")
    assert isinstance(empty, UnwantedRecord)
    assert empty.reason == "no_main_text"
    assert plain == Document("<urn:uuid:5>", "naïve plain text", "http://example.com/5")
    assert broken == BadRecord(f"{path}:<urn:uuid:6>", "invalid_utf8", 1, "\\xff")


def chunked(body: bytes) -> bytes:
    parts = [body[start : start + 100] for start in range(0, len(body), 100)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


# what no compression makes much shorter
LONG_PAGE = PAGE.replace(b"</article>", b"<p>%s</p></article>" % random.Random(0).randbytes(5000).hex().encode())


@pytest.mark.parametrize("name", ["gzip", "br", "zstd"])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_content_encodings_are_undone(tmp_path: Path, name: str, in_chunks: bool) -> None:
    import brotli

    compress = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstandard.compress}[name]
    body = chunked(compress(PAGE)) if in_chunks else compress(PAGE)
    fields = {"Content_Encoding": name} | ({"Transfer_Encoding": "chunked"} if in_chunks else {})
    path = tmp_path / "a.warc"
    path.write_bytes(response(1, body, **fields) + RECORDS[5])
    page, plain = read(path)
    assert isinstance(page, Document)
    assert PARAGRAPH.strip() in page.text
    assert plain == Document("<urn:uuid:5>", "naïve plain text", "http://example.com/5")


def test_a_decoded_body_beneath_the_headers_of_before_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(response(1, PAGE, Content_Encoding="gzip", Transfer_Encoding="chunked"))
    (page,) = read(path)
    assert isinstance(page, Document)
    assert PARAGRAPH.strip() in page.text


BODY = gzip.compress(LONG_PAGE)


@pytest.mark.parametrize(
    ("body", "fields", "reason"),
    [
        (BODY[: len(BODY) // 2], {"Content_Encoding": "gzip"}, "gzip: the body has no end"),
        (
            BODY[:2000] + bytes(byte ^ 0x55 for byte in BODY[2000:2050]) + BODY[2050:],
            {"Content_Encoding": "gzip"},
            "gzip: Error -3 while decompressing data: ",
        ),
        (BODY, {"Content_Encoding": "compress"}, "content encoding 'compress' is not known"),
        (chunked(PAGE)[:-5], {"Transfer_Encoding": "chunked"}, "chunked: Couldn't decode length header"),
        (chunked(PAGE)[:-50], {"Transfer_Encoding": "chunked"}, "chunked: Ran out of data before end of chunk"),
    ],
)
def test_a_body_that_cannot_be_decoded_is_one_bad_record(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], body: bytes, fields: dict[str, str], reason: str
) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(response(1, body, **fields) + RECORDS[5])
    bad, plain = read(path)
    assert isinstance(bad, BadRecord)
    assert (bad.location, bad.reason, bad.size_bytes) == (f"{path}:<urn:uuid:1>", "undecodable", len(body))
    assert bad.example.startswith(reason)
    assert bad.example.endswith(": http://example.com/1")
    assert plain == Document("<urn:uuid:5>", "naïve plain text", "http://example.com/5")
    assert capfd.readouterr().err == ""


def test_what_is_no_page_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(response(1, b"\x89PNG", "image/png", Content_Encoding="none"))
    (image,) = read(path)
    assert isinstance(image, UnwantedRecord)
    assert (image.reason, image.size_bytes) == ("not_html", 4)


@pytest.mark.parametrize("cut_bytes", [6, 9, 100])
def test_an_archive_that_is_cut_off_is_an_error_that_names_it(tmp_path: Path, cut_bytes: int) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join([*RECORDS, record("conversion", 7, b"text")])[:-cut_bytes])
    with pytest.raises(
        SourceError, match=r"a.warc is not a whole web archive \([^\n]+\); fetch it again, or name its type$"
    ):
        read(path)


@pytest.mark.parametrize(
    ("behind", "reason"), [(b"Content-Length:", "is not where the one before it ends"), (b"\r\n\r\n", r"lacks \d+ of")]
)
def test_an_archive_that_is_cut_off_in_or_behind_the_header_of_a_response_is_an_error(
    tmp_path: Path, behind: bytes, reason: str
) -> None:
    path = tmp_path / "a.warc"
    head = response(7, PAGE).partition(behind)[0]
    path.write_bytes(b"".join([*RECORDS, head, behind]))
    with pytest.raises(SourceError, match=rf"a.warc is not a whole web archive \(<urn:uuid:7> {reason}"):
        read(path)


def test_a_response_that_does_not_say_of_what_is_one_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(
        RECORDS[1].replace(b"WARC-Target-URI: http://example.com/1\r\n", b"")
        + RECORDS[2].replace(b"WARC-Target-URI: http://example.com/2\r\n", b"")
        + RECORDS[5]
    )
    bad, plain = read(path)
    assert isinstance(bad, BadRecord)
    assert (bad.location, bad.reason, bad.example) == (f"{path}:<urn:uuid:2>", "missing_field", "WARC-Target-URI")
    assert plain == Document("<urn:uuid:5>", "naïve plain text", "http://example.com/5")


@pytest.mark.parametrize("cut_bytes", [1, 9, 100])
def test_a_compressed_archive_that_is_cut_off_is_an_error_that_names_it(tmp_path: Path, cut_bytes: int) -> None:
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(map(gzip.compress, RECORDS))[:-cut_bytes])
    with pytest.raises(SourceError, match=r"a.warc.gz is damaged or truncated"):
        read(path)


def test_a_record_whose_length_is_wrong_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    wrong = record("conversion", 1, b"some text").replace(b"Content-Length: 9", b"Content-Length: 5")
    path.write_bytes(wrong + record("conversion", 2, b"more"))
    with pytest.raises(SourceError, match=r"a.warc is not a whole web archive"):
        read(path)


def test_what_is_no_archive_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(b'{"text": "one"}\n')
    with pytest.raises(SourceError, match=r"a.warc is not a whole web archive"):
        read(tmp_path / "a.warc")


def test_a_record_over_the_limit_is_one_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "MAX_RECORD_BYTES", 20)
    path = tmp_path / "a.warc"
    path.write_bytes(record("conversion", 1, b"x" * 100) + record("conversion", 2, b"more"))
    large, more = read(path)
    assert isinstance(large, BadRecord)
    assert (large.reason, large.size_bytes) == ("too_large", 100)
    assert more == Document("<urn:uuid:2>", "more", "http://example.com/2")


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "warcio", None)
    with pytest.raises(SourceError, match=r"source 'web': type warc needs warcio; install the extra `web`"):
        read(tmp_path / "a.warc")
