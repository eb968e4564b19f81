from __future__ import annotations

import base64
import gzip
import random
import zlib
from collections.abc import Callable

import pytest
import zstandard

from pipeline.sources import content_encoding
from pipeline.sources.content_encoding import UndecodableError, decoded

brotli = pytest.importorskip("brotli", reason="needs the extra web")

ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}
# not so regular that it becomes a few bytes
CONTENT = b" ".join(b"%d" % number for number in random.Random(0).choices(range(10_000), k=20_000))

every_encoding = pytest.mark.parametrize("encoding", ENCODE)


def decode(body: bytes, encoding: str, *, part_bytes: int = 1 << 16) -> bytes:
    parts = (body[start : start + part_bytes] for start in range(0, len(body), part_bytes))
    return b"".join(decoded(parts, encoding=encoding))


@every_encoding
@pytest.mark.parametrize("part_bytes", [1, 1000, 1 << 16])
def test_a_body_is_decoded_however_it_is_cut(encoding: str, part_bytes: int) -> None:
    assert decode(ENCODE[encoding](CONTENT), encoding, part_bytes=part_bytes) == CONTENT


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_a_body_without_encoding_is_as_it_is(encoding: str) -> None:
    assert decode(CONTENT, encoding) == CONTENT


def test_names_are_those_of_the_field_in_any_case() -> None:
    assert decode(gzip.compress(b"text"), " X-GZip ") == b"text"


def test_deflate_may_lack_its_header() -> None:
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    assert decode(bare.compress(CONTENT) + bare.flush(), "deflate") == CONTENT


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_members_in_a_row_are_one_body(encoding: str) -> None:
    assert decode(ENCODE[encoding](b"one") + ENCODE[encoding](b"two"), encoding) == b"onetwo"


@every_encoding
@pytest.mark.parametrize("cut_bytes", [1, 5, 1000])
def test_a_body_that_is_cut_has_no_end(encoding: str, cut_bytes: int) -> None:
    with pytest.raises(UndecodableError, match=rf"^{encoding}: the body has no end$"):
        decode(ENCODE[encoding](CONTENT)[:-cut_bytes], encoding)


@every_encoding
def test_what_follows_the_end_is_an_error(encoding: str) -> None:
    with pytest.raises(UndecodableError, match=rf"^{encoding}: "):
        decode(ENCODE[encoding](CONTENT) + b"<html>", encoding)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])  # br has no checksum
def test_damage_is_an_error(encoding: str) -> None:
    body = bytearray(ENCODE[encoding](CONTENT))
    body[5000:5050] = bytes(byte ^ 0x55 for byte in body[5000:5050])
    with pytest.raises(UndecodableError, match=rf"^{encoding}: "):
        decode(bytes(body), encoding)


@every_encoding
def test_what_is_not_encoded_at_all_is_an_error(encoding: str) -> None:
    with pytest.raises(UndecodableError, match=rf"^{encoding}: "):
        decode(b"plain text" * 9, encoding)


@pytest.mark.parametrize("encoding", [*ENCODE, "utf-8", "gzip, br"])
def test_markup_is_taken_as_it_stands_though_its_header_says_otherwise(encoding: str) -> None:
    page = b"\xef\xbb\xbf\n <html>" + CONTENT + b"</html>"
    assert decode(page, encoding, part_bytes=1000) == page


def test_a_bare_deflate_stream_that_begins_like_markup_is_decoded() -> None:
    body = base64.b85decode("Jc_{)06-AI8q*BvzlUQV_lXgZf=uKBBS0rtRk|W@dvn_EUCB!P#m4dQ00030|4YqF0RR")
    assert body.startswith(b"<")
    assert decode(body, "deflate") == zlib.decompress(body, wbits=-zlib.MAX_WBITS)


def test_an_encoding_that_is_not_known_is_named() -> None:
    with pytest.raises(UndecodableError, match=r"^content encoding 'gzip, br' is not known$"):
        decode(b"", "gzip, br")


@every_encoding
def test_a_body_that_grows_a_thousandfold_comes_in_small_parts(encoding: str) -> None:
    bomb = ENCODE[encoding](bytes(30_000_000))
    sizes = [len(part) for part in decoded([bomb], encoding=encoding)]
    assert sum(sizes) == 30_000_000
    assert max(sizes) <= 128 * content_encoding._STEP_BYTES // 4 * 1024
