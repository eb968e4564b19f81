"""Records of Arrow columns, for Parquet, Arrow and Hugging Face rows: strings as undecoded bytes.

None of these formats promises that its strings are UTF-8, and one bad row is one bad record, not the end of the batch.
A dotted path is a field of a struct, unless a column's own name is the path.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.document import Record, SourceError
from pipeline.source_config import RecordFields
from pipeline.sources.fields import paths_of, record_of


def require_columns(config: RecordFields, schema: pa.Schema, *, where: str) -> None:
    """Raises SourceError, naming `where` and what is there, for the first field that the schema lacks."""
    for path in paths_of(config):
        top, *inner = _steps(path, schema)
        if top not in schema.names:
            # config is of a source's class, which has a name
            raise SourceError(
                f"source {config.name!r}: {where} has no column {path!r}; "  # type: ignore[attr-defined]
                f"it has {', '.join(schema.names)}"
            )
        kind = schema.field(top).type
        for step in inner:
            fields = [field.name for field in kind] if pa.types.is_struct(kind) else []
            if step not in fields:
                raise SourceError(
                    f"source {config.name!r}: {where} has no field {path!r}; "  # type: ignore[attr-defined]
                    f"what lies above {step!r} is {kind}"
                )
            kind = kind.field(step).type


def top_columns(config: RecordFields, schema: pa.Schema) -> list[str]:
    """The columns that hold the fields, each once."""
    return list(dict.fromkeys(_steps(path, schema)[0] for path in paths_of(config)))


def column_records(
    config: RecordFields, table: pa.Table | pa.RecordBatch, *, location: str, first_row: int
) -> Iterator[Record]:
    """A record a row, named `location:row`."""
    paths = paths_of(config)
    columns = [raw_values(_column(table, path)) for path in paths]
    for row, values in enumerate(zip(*columns, strict=True), start=first_row):
        by_path = dict(zip(paths, values, strict=True))
        text = by_path.get(config.text_field) if config.template is None else None
        size_bytes = sum(len(value) for value in values if isinstance(value, bytes))
        yield record_of(
            config,
            by_path.__getitem__,
            location=f"{location}:{row}",
            size_bytes=len(text) if isinstance(text, bytes) else size_bytes,
            example=by_path if text is None else text,
        )


def raw_values(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """A Python value a row, None where there is none; strings of every Arrow kind as bytes.

    Raises ArrowInvalid for strings whose offsets are damaged.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.large_binary())
        # damaged offsets: Arrow checks them only when it is asked, and ends the process on some
        column.validate(full=True)
    if pa.types.is_nested(kind):
        # no field that is read may be of these: what they are says enough, and to decode them may fail
        return [kind if is_valid else None for is_valid in column.is_valid().to_pylist()]
    values: list[object] = column.to_pylist()
    return values


def _steps(path: str, schema: pa.Schema) -> list[str]:
    return [path] if path in schema.names else path.split(".")


def _column(table: pa.Table | pa.RecordBatch, path: str) -> pa.Array | pa.ChunkedArray:
    top, *inner = _steps(path, table.schema)
    column = table.column(top)
    for step in inner:
        column = pc.struct_field(column, step)
    return column
