"""The content encodings of HTTP (RFC 9110 §8.4.1; RFC 8878 for zstd), undone in steps of bounded memory.

A body that is damaged, has no end or is of another encoding is an error, never a shorter text. What br cannot tell is
damage that makes another sound stream: it has no checksum. Markup beneath a header that calls it encoded is taken as it
stands: archives were written that hold decoded bodies beneath the headers of before, and servers call `utf-8` one.
"""

from __future__ import annotations

import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import zstandard

# so little makes at most some tens of MB: zstd can turn four bytes into 128 KiB
_STEP_BYTES = 1 << 10
_BROTLI_OUTPUT_BYTES = 1 << 20


class UndecodableError(ValueError):
    """A body that its content encoding does not explain."""


def decoded(parts: Iterable[bytes], *, encoding: str) -> Iterator[bytes]:
    """The content of a body that comes in parts, by the value of its Content-Encoding header.

    Raises UndecodableError for an encoding that is not known, and for a body that is damaged or has no end.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        yield from parts
        return
    parts = iter(parts)
    first = next(parts, b"")
    if is_markup(first) and not _begins_encoded(first[:_STEP_BYTES], name):
        yield first
        yield from parts
        return
    if name not in _DECODERS:
        raise UndecodableError(f"content encoding {name!r} is not known")
    decoder: Any = None
    for part in chain([first], parts):
        for start in range(0, len(part), _STEP_BYTES):
            rest = part[start : start + _STEP_BYTES]
            while rest:
                # one that has ended is followed by another: gzip and zstd may come in several
                decoder = decoder or _DECODERS[name](rest)
                try:
                    yield from decoder.decode(rest)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise UndecodableError(f"{name}: {error}") from None
                rest = decoder.rest
                if decoder.has_ended:
                    decoder = None
    if decoder is not None:
        raise UndecodableError(f"{name}: the body has no end")


def is_markup(start: bytes) -> bool:
    """Whether a body that starts with these bytes looks like HTML or XML."""
    return start.removeprefix(BOM_UTF8).lstrip().startswith(b"<")


def _begins_encoded(start: bytes, name: str) -> bool:
    if name not in _DECODERS:
        return False
    try:
        for _ in _DECODERS[name](start).decode(start):
            pass
    except (zlib.error, zstandard.ZstdError, UndecodableError):
        return False
    return True


class _ByObject:
    """By an object of zlib's kind."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def decode(self, part: bytes) -> Iterator[bytes]:
        yield self._inner.decompress(part)

    @property
    def has_ended(self) -> bool:
        return bool(self._inner.eof)

    @property
    def rest(self) -> bytes:
        unused: bytes = self._inner.unused_data
        return unused


class _Brotli:
    rest = b""  # it takes bytes behind its end for damage

    def __init__(self, start: bytes) -> None:
        import brotli

        self._inner = brotli.Decompressor()
        self._error: type[Exception] = brotli.error

    def decode(self, part: bytes) -> Iterator[bytes]:
        try:
            while content := self._inner.process(part, output_buffer_limit=_BROTLI_OUTPUT_BYTES):
                yield content
                part = b""  # it has taken it; what it has not yet given out is more output
        except self._error as error:
            raise UndecodableError(f"br: {error}") from None

    @property
    def has_ended(self) -> bool:
        return bool(self._inner.is_finished())


def _deflate(start: bytes) -> _ByObject:
    """zlib's format (RFC 1950), or, as many servers send it, the bare stream within."""
    has_header = start[0] & 0x8F == 0x08  # the method and a window of at most 32 KiB; no bare stream begins so
    return _ByObject(zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS))


# a new decoder of a body that starts with these bytes
_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "gzip": lambda start: _ByObject(zlib.decompressobj(16 + zlib.MAX_WBITS)),
    "deflate": _deflate,
    "br": _Brotli,
    "zstd": lambda start: _ByObject(zstandard.ZstdDecompressor().decompressobj()),
}
_DECODERS["x-gzip"] = _DECODERS["gzip"]  # an alias that recipients should know
