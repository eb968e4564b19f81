"""The first bad record of a run as an error names it: where it lies and, where a field is missing, what was looked for.

The fields that the record has are read from the beginning of it that the report keeps, so the last may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from pipeline.config import PipelineConfig
from pipeline.document import one_line, shorten
from pipeline.report import Tally
from pipeline.source_config import RecordFields

# as many as fit a line
_SHOWN_FIELDS = 12


def first_bad(config: PipelineConfig, tallies: Iterable[tuple[str, Tally]], reason: str) -> str:
    """The first record of a reason in tallies by source, of which one has such a record."""
    source, example = next(
        (name, tally.dropped[reason].examples[0])
        for name, tally in tallies
        if reason in tally.dropped and tally.dropped[reason].examples
    )
    fields = next(each for each in config.sources if each.name == source)
    looked_for = _looked_for(fields, reason) if isinstance(fields, RecordFields) else None
    if looked_for is None:
        return example.location
    missing, wanted = looked_for
    names = list(field_names(example.content))
    if missing in names:
        wanted += ", which is null"
    more = ", …" if len(names) > _SHOWN_FIELDS or example.content.endswith("…") else ""
    has = f"; its fields: {one_line(shorten(', '.join(names[:_SHOWN_FIELDS])))}{more}" if names else ""
    return f"{example.location} (source {source} wants {wanted}{has})"


def _looked_for(fields: RecordFields, reason: str) -> tuple[str, str] | None:
    """The field that is missing, and the setting that asks for it; None where nothing is missing."""
    if reason == "missing_field":
        if fields.template is not None:
            return "", f"template={fields.template!r}"
        return fields.text_field, f"text_field={fields.text_field}"
    conditions = (each.field for each in fields.keep_if if reason == f"missing_{each.field}")
    return next(((field, f"keep_if.field={field}") for field in conditions), None)


def field_names(content: str) -> Iterator[str]:
    """The names at the top of a JSON object of which `content` is the beginning; of anything else, none."""
    decoder = json.JSONDecoder()
    rest = content.lstrip()
    separator = "{"
    while rest.startswith(separator):
        rest = rest[1:].lstrip()
        if not rest.startswith('"'):
            return
        try:
            name, end = decoder.raw_decode(rest)
            yield name
            rest = rest[end:].lstrip()
            _, end = decoder.raw_decode(rest.removeprefix(":").lstrip())
        except json.JSONDecodeError:
            return
        rest = rest.removeprefix(":").lstrip()[end:].lstrip()
        separator = ","
