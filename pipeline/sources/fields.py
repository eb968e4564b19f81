"""The fields of a structured record, judged in one place for every format: conditions, text or template, id."""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from functools import lru_cache

from pipeline.document import (
    MAX_RECORD_BYTES,
    BadReason,
    BadRecord,
    Document,
    LongText,
    Record,
    UnwantedRecord,
    shorten,
)
from pipeline.source_config import ConditionConfig, RecordFields

Lookup = Callable[[str], object]


def paths_of(config: RecordFields) -> tuple[str, ...]:
    """Every field that is read, each once."""
    text = [config.text_field] if config.template is None else [name for _, name in _parts(config.template) if name]
    names = [*text, *([config.id_field] if config.id_field else []), *(condition.field for condition in config.keep_if)]
    return tuple(dict.fromkeys(names))


def value_at(record: object, path: str) -> object:
    """The value at a dotted path of objects and of positions in lists, None where there is none.

    A field whose own name is the path comes first.
    """
    if not isinstance(record, dict):
        return None
    if path in record or "." not in path:
        return record.get(path)
    value: object = record
    for part in path.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def record_of(config: RecordFields, lookup: Lookup, *, location: str, size_bytes: int, example: object) -> Record:
    """A document if the record meets the conditions and its text is text; its id is the id field's, or its location.

    An id that is a URL, with its scheme, is the document's URL too; a location never is, though it may be s3://….
    Bytes are read as UTF-8. What of an id is not UTF-8 is written as `\\xff`, and the location stands for one that is
    empty, or neither text nor an integer: it spoils a name, not the text.
    `example` stands in the report if the record is dropped.
    """

    def whole(path: str) -> object:
        value = lookup(path)
        return value.whole() if isinstance(value, LongText) else value

    for condition in config.keep_if:
        value = whole(condition.field)
        if not _meets(value, condition):
            if value is None:  # told apart: it may be the config that misspells the field, of a whole source
                return UnwantedRecord(location, f"missing_{condition.field}", size_bytes, shorten(example))
            return UnwantedRecord(location, f"unwanted_{condition.field}", size_bytes, shorten(_as_text(value)))
    text: str | LongText | _Flaw
    if config.template is None:
        given = lookup(config.text_field)
        text = given if isinstance(given, LongText) else _text(given, example)
    else:
        text = _joined(config.template, whole, example)
    if isinstance(text, _Flaw):
        return BadRecord(location, text.reason, size_bytes, shorten(text.example))
    identity = _identity(whole(config.id_field) if config.id_field else None)
    return Document(
        document_id=identity or location, text=text, url=identity if identity and "://" in identity else None
    )


def _identity(value: object) -> str | None:
    """None for what names nothing. JSON's integers of more than 64 bits are floats by now, many of them the same."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None


class _Flaw:
    def __init__(self, reason: BadReason, example: object) -> None:
        self.reason = reason
        self.example = example


def _text(value: object, example: object) -> str | _Flaw:
    if value is None:
        return _Flaw("missing_field", example)
    if isinstance(value, bytes):
        if len(value) > MAX_RECORD_BYTES:
            return _Flaw("too_large", value[:1000])
        try:
            return value.decode()
        except UnicodeDecodeError:
            return _Flaw("invalid_utf8", value[:1000])
    return value if isinstance(value, str) else _Flaw("not_text", example)


def _joined(template: str, lookup: Lookup, example: object) -> str | _Flaw:
    whole: list[str] = []
    for literal, name in _parts(template):
        whole.append(literal)
        if name is None:
            continue
        value = lookup(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        text = _as_text(value) if is_number else _text(value, example)
        if isinstance(text, _Flaw):
            return text
        whole.append(text)
    return "".join(whole)


@lru_cache
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """Literal texts, each with the field that follows it; the config has checked that there is nothing else."""
    return tuple((literal, name) for literal, name, _, _ in string.Formatter().parse(template))


def _meets(value: object, condition: ConditionConfig) -> bool:
    if value is None:
        return False
    if condition.one_of is not None:
        text = _as_text(value)
        return any(text == _as_text(wanted) for wanted in condition.one_of)
    number = _number(value)
    above = condition.min_value is None or number >= condition.min_value
    below = condition.max_value is None or number <= condition.max_value
    return above and below and not math.isnan(number)


def _number(value: object) -> float:
    """NaN for what is none; text may be one."""
    if isinstance(value, str | bytes) and "_" in _as_text(value):
        return math.nan  # Python's float takes 1_0 for 10
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _as_text(value: object) -> str:
    """As JSON and CSV would write it: true, 3, 0.5."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)
