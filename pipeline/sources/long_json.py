"""JSON texts of many megabytes that are mostly one string, in less memory than `orjson` takes for them.

`orjson` copies what it is given and makes the string beside it: with the line, three times the text, and six times
where an emoji is in it. Here a long string is made in parts, each by `orjson`, and stays in parts (`LongText`). What is
JSON, and what it means, `orjson` alone decides.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

import orjson

from pipeline.document import LongText
from pipeline.workers.memory import give_back_freed_memory

LONG_BYTES = 8 << 20
_PART_BYTES = 2 << 20

# of a string, from behind its first quote
_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# the longest escape is two surrogates: 12 bytes; and no character is cut
_PART_END = re.compile(rb"[^\\]{12}(?=[^\x80-\xbf])")


class LongStrings:
    """The long strings of a parsed text, in which short ones stand for them."""

    def __init__(self, found: dict[str, LongText]) -> None:
        self._found = found

    def real(self, value: object) -> object:
        """The value of a field, or the long text that it stands for."""
        # not looked up where there are none: that would hash every text
        return self._found.get(value, value) if self._found and isinstance(value, str) else value


NO_LONG_STRINGS = LongStrings({})


def parse(content: bytearray) -> tuple[Any, LongStrings]:
    """The value of a JSON text, and its strings of LONG_BYTES or more. `content` is empty afterwards.

    Raises orjson.JSONDecodeError, with `content` as it was.
    """
    give_back_freed_memory()
    rest = bytearray()
    found: dict[str, LongText] = {}
    done = 0
    quote = content.find(b'"')
    while quote >= 0 and (match := _REST_OF_STRING.match(content, quote + 1)):
        start, stop = quote + 1, match.end() - 1
        if stop - start >= LONG_BYTES:
            stand_in = secrets.token_hex(16)  # no text can hold it
            found[stand_in] = LongText(_parts(content, start, stop))
            rest += content[done:start] + stand_in.encode()
            done = stop
        quote = content.find(b'"', stop + 1)
    rest += content[done:]
    value = orjson.loads(rest)
    content.clear()
    return value, LongStrings(found)


def _parts(content: bytearray, start: int, stop: int) -> list[str]:
    parts: list[str] = []
    while start < stop:
        end = _PART_END.search(content, min(start + _PART_BYTES, stop), stop)
        part_stop = stop if end is None else end.end()
        parts.append(orjson.loads(b'"%s"' % content[start:part_stop]))
        start = part_stop
    return parts
