from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.document import LongText
from pipeline.sources import long_json
from pipeline.sources.long_json import parse


@pytest.fixture(autouse=True)
def short_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_json, "LONG_BYTES", 5)
    monkeypatch.setattr(long_json, "_PART_BYTES", 3)


TEXTS = st.text(alphabet='ab"\\/\n\t\x01\x7fé東😀\ud83d\u2028 {}[]:,', max_size=60)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(-9, 9), st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


def whole(value: Any, strings: long_json.LongStrings) -> Any:
    if isinstance(value, dict):
        return {whole(key, strings): whole(inner, strings) for key, inner in value.items()}
    if isinstance(value, list):
        return [whole(inner, strings) for inner in value]
    real = strings.real(value)
    return real.whole() if isinstance(real, LongText) else real


def parsed(content: bytes) -> Any:
    return whole(*parse(bytearray(content)))


def by_orjson(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return "not JSON"


def by_parts(content: bytes) -> Any:
    try:
        return parsed(content)
    except orjson.JSONDecodeError:
        return "not JSON"


@settings(max_examples=400, deadline=None)
@given(value=VALUES, escapes=st.booleans(), indent=st.sampled_from([None, 1]))
def test_a_value_is_what_orjson_makes_of_it(value: Any, escapes: bool, indent: int | None) -> None:
    # of a lone surrogate, which is not JSON to orjson, either an escape or bytes that are not UTF-8
    content = json.dumps(value, ensure_ascii=escapes, indent=indent).encode(errors="surrogatepass")
    assert by_parts(content) == by_orjson(content)


@settings(max_examples=400, deadline=None)
@given(
    value=VALUES, escapes=st.booleans(), place=st.integers(0, 200), put=st.binary(max_size=3), dropped=st.integers(0, 4)
)
def test_what_is_damaged_is_judged_as_orjson_does(
    value: Any, escapes: bool, place: int, put: bytes, dropped: int
) -> None:
    content = json.dumps([value], ensure_ascii=escapes).encode(errors="surrogatepass")
    damaged = content[:place] + put + content[place + dropped :]
    assert by_parts(damaged) == by_orjson(damaged)


def test_a_text_that_is_refused_is_left_as_it_was() -> None:
    content = bytearray(b'{"a": "a long string", "b": }')
    with pytest.raises(orjson.JSONDecodeError):
        parse(content)
    assert content == b'{"a": "a long string", "b": }'


def test_a_text_that_is_parsed_is_given_up_for_its_parts() -> None:
    content = bytearray(b'{"a": "a string that is much longer"}')
    value, strings = parse(content)
    assert content == b""
    long = strings.real(value["a"])
    assert isinstance(long, LongText)
    assert len(long.parts) > 1
    assert len(long) == 28
    assert (long.whole(), strings.real("short"), strings.real(3)) == ("a string that is much longer", "short", 3)


def test_no_text_is_hashed_where_none_is_long() -> None:
    class Unhashable(str):
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

    assert long_json.NO_LONG_STRINGS.real(Unhashable("a")) == "a"


def test_no_escape_and_no_character_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_json, "_PART_BYTES", 1)
    text = "0123456789abc\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16") * 9
    for escapes in (True, False):
        assert parsed(json.dumps([text], ensure_ascii=escapes).encode()) == [text]
