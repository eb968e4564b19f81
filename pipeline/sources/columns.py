"""Records of Arrow columns, for Parquet, Arrow and Hugging Face rows: strings as undecoded bytes.

None of these formats promises that its strings are UTF-8, and one bad row is one bad record, not the end of the batch.
A dotted path is a field of a struct, unless a column's own name is the path.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.document import Record, SourceError, one_line
from pipeline.source_config import RecordFields
from pipeline.sources.fields import paths_of, record_of

# rows that are held as Python values at once
BATCH_ROWS = 256


def require_columns(config: RecordFields, schema: pa.Schema, *, where: str) -> None:
    """Raises SourceError, naming `where` and what is there, for the first field that cannot be read by the schema.

    That is one that is not there, has a name that two have, or is asked for an id and holds neither text nor integers.
    """
    place = f"source {config.name!r}: {where}"
    for path in paths_of(config):
        top, *inner = _steps(path, schema)
        if top not in schema.names:
            raise SourceError(f"{place} has no column {path!r}; it has {', '.join(schema.names)}")
        if schema.names.count(top) > 1:
            raise SourceError(f"{place} has two columns named {top!r}; rename one")
        kind = schema.field(top).type
        for step in inner:
            fields = [field.name for field in kind] if pa.types.is_struct(kind) else []
            if step not in fields:
                raise SourceError(f"{place} has no field {path!r}; what lies above {step!r} is {kind}")
            if fields.count(step) > 1:
                raise SourceError(f"{place} has two fields {path!r}; rename one")
            kind = kind.field(step).type
        if path == config.id_field and not _can_name(kind):
            raise SourceError(f"{place} has {kind} in the id_field {path!r}; wanted text or integers")


def top_columns(config: RecordFields, schema: pa.Schema) -> list[str]:
    """The columns that hold the fields, each once."""
    return list(dict.fromkeys(_steps(path, schema)[0] for path in paths_of(config)))


def column_records(
    config: RecordFields, table: pa.Table | pa.RecordBatch, *, location: str, first_row: int
) -> Iterator[Record]:
    """A record a row, named `location:row`."""
    paths = paths_of(config)
    columns = [raw_values(_column(table, path), where=f"{location}: column {path!r}") for path in paths]
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


def raw_values(column: pa.Array | pa.ChunkedArray, *, where: str) -> list[object]:
    """A Python value a row, None where there is none; text of every Arrow kind as bytes.

    Times and what else Python has no plain value for are Arrow's scalars of their text (`str` gives it), which are not
    taken for text. Raises ArrowException for a damaged column, SourceError for one that cannot be had as text.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [value for chunk in chunks for value in _plain_values(_plain(chunk, where=where))]


# without a copy of the characters, and without looking whether they are UTF-8
_AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


def _plain(array: pa.Array, *, where: str) -> pa.Array:
    """The same values in an array that is whole, and is neither of strings, nor a dictionary, nor an extension's."""
    if isinstance(array.type, pa.UuidType):
        array = pa.array([None if value is None else str(value).encode() for value in array.to_pylist()], pa.binary())
    elif isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array.indices.validate(full=True)
        values = _plain(array.dictionary, where=where)
        if values.type == pa.binary_view():
            values = values.cast(pa.large_binary())  # take knows no views
        return values.take(array.indices)  # which minds indices out of bounds
    if array.type in _AS_BYTES:
        array = array.cast(_AS_BYTES[array.type])
    if pa.types.is_nested(array.type):
        array.validate()
        return array
    # Arrow looks at offsets only when it is asked, and ends the process on damaged ones
    array.validate(full=not pa.types.is_temporal(array.type))
    if _is_plain(array.type):
        return array
    try:
        # to_pylist fails for years beyond Python's and for time zones that it does not know
        return array.cast(pa.string())
    except pa.ArrowException as error:
        reason = one_line(error)
        raise SourceError(f"{where} of type {array.type} cannot be read ({reason}); name another") from None


def _plain_values(array: pa.Array) -> list[object]:
    if pa.types.is_nested(array.type):
        # no field that is read may be of these: what they are says enough, and to decode them may fail
        return [array.type if is_valid else None for is_valid in array.is_valid().to_pylist()]
    if pa.types.is_string(array.type):
        return [scalar if scalar.is_valid else None for scalar in array]
    values: list[object] = array.to_pylist()
    return values


def _is_plain(kind: pa.DataType) -> bool:
    """Whether Python has a plain value for it, which to_pylist gives."""
    types = pa.types
    return (
        _is_bytes(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
        or types.is_null(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return kind in _AS_BYTES.values() or pa.types.is_fixed_size_binary(kind)


def _can_name(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _can_name(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _can_name(kind.value_type)
    return kind in _AS_BYTES or _is_bytes(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)


def _steps(path: str, schema: pa.Schema) -> list[str]:
    return [path] if path in schema.names else path.split(".")


def _column(table: pa.Table | pa.RecordBatch, path: str) -> pa.Array | pa.ChunkedArray:
    top, *inner = _steps(path, table.schema)
    column = table.column(top)
    if inner:
        column.validate()
    for step in inner:
        column = pc.struct_field(column, step)
    return column
