"""Values of Arrow columns, for Parquet and Hugging Face rows: strings as undecoded bytes.

Neither format promises that its strings are UTF-8, and one bad row is one bad record, not the end of the batch.
"""

from __future__ import annotations

import pyarrow as pa


def raw_values(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """A Python value a row, None where there is none; strings of every Arrow kind as bytes."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.large_binary())
    values: list[object] = column.to_pylist()
    return values
