from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest

from pipeline.document import BadRecord, Document, Record, SourceError, UnwantedRecord
from pipeline.source_config import ArrowConfig
from pipeline.sources.columns import column_records, raw_values, require_columns


def config_of(**fields: Any) -> ArrowConfig:
    return ArrowConfig(type="arrow", name="corpus", files=("a",), **fields)


def read(columns: dict[str, Any] | pa.Table, **fields: Any) -> list[Record]:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    config = config_of(**fields)
    require_columns(config, table.schema, where="a")
    return list(column_records(config, table, location="a", first_row=0))


def ids_of(records: list[Record]) -> list[str]:
    return [record.document_id for record in records if isinstance(record, Document)]


def damaged() -> Iterator[tuple[str, pa.Array]]:
    """Arrays that look whole until a value in the middle is read; read unchecked, most of them end the process."""
    for kind, code in [(pa.string(), "i"), (pa.large_string(), "q"), (pa.binary(), "i"), (pa.large_binary(), "q")]:
        offsets = pa.py_buffer(struct.pack(f"<4{code}", 0, 1 << 30, 1 << 30, 6))
        yield str(kind), pa.Array.from_buffers(kind, 3, [None, offsets, pa.py_buffer(b"abcdef")])
    binary = pa.Array.from_buffers(
        pa.binary(), 3, [None, pa.py_buffer(struct.pack("<4i", 0, 1 << 30, 1, 6)), pa.py_buffer(b"abcdef")]
    )
    yield "dictionary of damaged values", pa.DictionaryArray.from_arrays(pa.array([0, 1]), binary, safe=False)
    for index in (99, -1):
        whole = pa.array(["a", "b"])
        yield f"index {index}", pa.DictionaryArray.from_arrays(pa.array([0, index]), whole, safe=False)


@pytest.mark.parametrize("array", [pytest.param(array, id=name) for name, array in damaged()])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_damaged_column_is_an_error_of_arrow(array: pa.Array, is_chunked: bool) -> None:
    table = pa.table({"text": array}) if is_chunked else pa.record_batch({"text": array})
    with pytest.raises(pa.ArrowException):
        list(column_records(config_of(), table, location="a", first_row=0))


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view()])
def test_a_damaged_view_is_an_error_of_arrow(kind: pa.DataType) -> None:
    # a view of 100 bytes in the first buffer, at an offset beyond its end
    view = pa.py_buffer(struct.pack("<i4sii", 100, b"abcd", 0, 1 << 30))
    whole = pa.array(["x" * 100], kind)
    try:
        array = pa.Array.from_buffers(kind, 1, [None, view, whole.buffers()[2]])
    except pa.ArrowInvalid:
        pytest.skip("Arrow looks at views itself")
    with pytest.raises(pa.ArrowException):
        list(column_records(config_of(), pa.table({"text": array}), location="a", first_row=0))


def test_a_dictionary_may_hold_strings_that_are_not_utf8() -> None:
    values = pa.array([b"good", b"\xff"], pa.binary()).view(pa.string())
    texts = pa.DictionaryArray.from_arrays(pa.array([1, 0, None]), values)
    assert [record if isinstance(record, Document) else record.reason for record in read({"text": texts})] == [
        "invalid_utf8",
        Document("a:1", "good"),
        "missing_field",
    ]


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view()])
def test_a_dictionary_may_hold_views(kind: pa.DataType) -> None:
    values = pa.array(["short", "too long to lie in its view"], kind)
    texts = pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 1], pa.uint32()), values)
    assert raw_values(texts, where="a") == [
        b"too long to lie in its view",
        b"short",
        None,
        b"too long to lie in its view",
    ]
    outside = pa.DictionaryArray.from_arrays(pa.array([2]), values, safe=False)
    with pytest.raises(pa.ArrowException):
        raw_values(outside, where="a")


def test_two_columns_of_a_name_that_is_read_are_refused() -> None:
    table = pa.table([["a"], ["b"], ["c"], ["d"]], names=["text", "x", "x", "id"])
    assert ids_of(read(table)) == ["a:0"]
    with pytest.raises(SourceError, match=r"^source 'corpus': a has two columns named 'x'; rename one$"):
        read(table, text_field="x")
    inner = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
    with pytest.raises(SourceError, match=r"^source 'corpus': a has two fields 'meta.x'; rename one$"):
        read({"meta": inner}, text_field="meta.x")


TIMES = [
    pytest.param(pa.array([1 << 62], pa.timestamp("s")), id="a year beyond Python's"),
    pytest.param(pa.array([(1 << 31) - 1], pa.date32()), id="a day beyond Python's"),
    pytest.param(pa.array([12345], pa.date64()), id="no whole day"),
    pytest.param(pa.array([1], pa.timestamp("ns")), id="nanoseconds"),
    pytest.param(pa.array([1], pa.duration("s")), id="a duration"),
]


@pytest.mark.parametrize("times", TIMES)
def test_times_that_python_does_not_know_spoil_no_document(times: pa.Array) -> None:
    table = {"text": ["one"], "at": times}
    condition = {"field": "at", "one_of": ["never"]}
    assert [type(record) for record in read(table, keep_if=[condition])] == [UnwantedRecord]
    condition = {"field": "at", "one_of": [times.cast(pa.string())[0].as_py()]}
    assert read(table, keep_if=[condition]) == [Document("a:0", "one")]


def test_a_time_is_compared_as_text_and_is_no_text() -> None:
    table = {"text": ["one"], "day": pa.array([19_723], pa.date32())}
    assert len(ids_of(read(table, keep_if=[{"field": "day", "one_of": ["2024-01-01"]}]))) == 1
    assert ids_of(read(table, keep_if=[{"field": "day", "min_value": 0}])) == []
    (bad,) = read(table, text_field="day")
    assert isinstance(bad, BadRecord)
    assert bad.reason == "not_text"


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([1], pa.timestamp("s", tz="Nowhere/City")), r"timestamp\[s, tz=Nowhere/City\] .*timezone"),
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), "month_day_nano_interval .*Unsupported cast"),
    ],
)
def test_a_column_that_cannot_be_read_is_named(column: pa.Array, reason: str) -> None:
    with pytest.raises(SourceError, match=rf"^a: column 'at' of type {reason}[^\n]*; name another$"):
        read({"text": ["one"], "at": column}, keep_if=[{"field": "at", "one_of": ["x"]}])


@pytest.mark.parametrize(
    "column", [pa.array([["a"]]), pa.array([{"a": 1}]), pa.array([1.5]), pa.array([True]), TIMES[0].values[0]]
)
def test_an_id_column_that_holds_neither_text_nor_integers_is_refused(column: pa.Array) -> None:
    with pytest.raises(SourceError, match=r"^source 'corpus': a has .+ in the id_field 'id'; wanted text or integers$"):
        read({"text": ["one"], "id": column}, id_field="id")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["x", "", None]), ["x", "a:1", "a:2"]),
        (pa.array([b"x", b"\xff", None]), ["x", "\\xff", "a:2"]),
        (pa.array([(1 << 64) - 1, 0, None], pa.uint64()), ["18446744073709551615", "0", "a:2"]),
        (pa.array(["x", "y", None]).dictionary_encode(), ["x", "y", "a:2"]),
        (pa.array([None, None, None]), ["a:0", "a:1", "a:2"]),
        (
            pa.array([UUID(int=1).bytes, UUID(int=2).bytes, None], pa.uuid()),
            [f"{UUID(int=1)}", f"{UUID(int=2)}", "a:2"],
        ),
    ],
)
def test_ids_are_text_or_integers(column: pa.Array, expected: list[str]) -> None:
    assert ids_of(read({"text": ["one", "two", "three"], "id": column}, id_field="id")) == expected
