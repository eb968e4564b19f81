from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.bad_records import BadRecordLimit
from pipeline.config import PipelineConfig
from pipeline.document import PipelineError
from pipeline.first_bad import field_names, first_bad
from pipeline.report import Dropped, Example, Tally
from pipeline.run import run
from pipeline.unit import UnitRecord

MakeConfig = Callable[..., PipelineConfig]


def record(*, size_bytes: int, records: int, bad: int, short: int = 0, source: str = "corpus") -> UnitRecord:
    dropped = {"missing_field": Dropped(documents=bad), "too_short": Dropped(documents=short)}
    tally = Tally(documents_in=records, documents_kept=records - bad - short, dropped=dropped)
    return UnitRecord(index=0, source=source, size_bytes=size_bytes, shards={}, tally=tally, seconds=0)


@pytest.mark.parametrize(
    ("bad", "out_of_reach"),
    [
        # a tenth is done with 100 records: at most 100 + 4 × 900 = 3700 in all, of which 1% may be bad
        (37, False),
        (38, True),
    ],
)
def test_what_is_still_to_come_may_hold_four_times_the_records_a_byte(bad: int, out_of_reach: bool) -> None:
    limit = BadRecordLimit(max_bad_record_fraction=0.01, bytes_by_source={"corpus": 1000})
    limit.add(record(size_bytes=100, records=100, bad=bad))
    assert limit.is_out_of_reach() is out_of_reach


@pytest.mark.parametrize(
    ("bad", "out_of_reach"),
    [
        # 100 records are read; corpus may hold 4 × 900 more, and tweets, of which none is read, 80,000 / 8
        (13, False),
        (14, True),
    ],
)
def test_a_source_that_is_not_yet_read_may_hold_many_small_records(bad: int, out_of_reach: bool) -> None:
    limit = BadRecordLimit(max_bad_record_fraction=0.001, bytes_by_source={"corpus": 1000, "tweets": 80_000})
    limit.add(record(size_bytes=100, records=100, bad=bad))
    assert limit.is_out_of_reach() is out_of_reach


@pytest.mark.parametrize(
    ("bad", "out_of_reach"),
    [
        # corpus is done; tweets are 100 times as dense: 10 + 1000 read, and at most 4 × 9000 to come
        (370, False),
        (371, True),
    ],
)
def test_each_source_is_reckoned_with_by_its_own_records_a_byte(bad: int, out_of_reach: bool) -> None:
    limit = BadRecordLimit(max_bad_record_fraction=0.01, bytes_by_source={"corpus": 1000, "tweets": 10_000})
    limit.add(record(size_bytes=1000, records=10, bad=0))
    limit.add(record(size_bytes=1000, records=1000, bad=bad, source="tweets"))
    assert limit.is_out_of_reach() is out_of_reach


@pytest.mark.parametrize(("bad", "out_of_reach"), [(2, False), (3, True)])
def test_at_the_end_the_limit_is_the_share_of_all_records(bad: int, out_of_reach: bool) -> None:
    limit = BadRecordLimit(max_bad_record_fraction=0.01, bytes_by_source={"corpus": 200})
    limit.add(record(size_bytes=100, records=100, bad=bad))
    limit.add(record(size_bytes=100, records=100, bad=0))
    assert limit.is_out_of_reach() is out_of_reach


def test_without_a_tolerance_the_first_bad_record_decides() -> None:
    limit = BadRecordLimit(max_bad_record_fraction=0, bytes_by_source={"corpus": 1000})
    limit.add(record(size_bytes=1, records=100, bad=0))
    assert not limit.is_out_of_reach()
    limit.add(record(size_bytes=1, records=100, bad=1))
    assert limit.is_out_of_reach()


def test_documents_that_a_filter_dropped_are_not_bad() -> None:
    limit = BadRecordLimit(max_bad_record_fraction=0, bytes_by_source={"corpus": 1000})
    limit.add(record(size_bytes=0, records=100, bad=0, short=100))
    assert not limit.is_out_of_reach()


def test_too_many_bad_records_fail_with_an_example_and_the_report(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "corpus").mkdir()
    file = tmp_path / "corpus" / "a.jsonl"
    file.write_bytes(b'{"text": "one"}\n' * 8 + b'{"text": 5}\n{"text"\n')
    expected = (
        r"2 of 10 records read are bad \(1 malformed_json, 1 not_text\), more than max_bad_record_fraction=0.1 allows; "
        r"the first malformed_json: .*a.jsonl@140; see .*report.json, then raise the limit and run again, "
        rf"or mend the source or its config and remove {tmp_path / 'dataset'} to start over$"
    )
    with pytest.raises(PipelineError, match=expected):
        run(make_config(max_bad_record_fraction=0.1))
    report = json.loads((tmp_path / "dataset" / "report.json").read_bytes())
    assert report["sources"]["corpus"]["dropped"]["not_text"]["examples"] == [
        {"location": f"{file}@128", "content": '{"text": 5}'}
    ]
    assert not (tmp_path / "dataset" / "manifest.json").exists()
    # the work is not lost: with a higher limit the same run ends
    assert run(make_config(max_bad_record_fraction=0.2, validation_fraction=0.2)).manifest.documents_in == 10


def test_a_wrong_text_field_stops_after_the_first_unit(corpus: Path, make_config: MakeConfig) -> None:
    wrong = {"name": "c", "type": "jsonl", "files": [f"{corpus}/*.jsonl"], "text_field": "body"}
    fields = {"sources": [wrong], "unit_size_bytes": 500, "validation_fraction": 0}
    units = make_config().output_dir / ".work" / "units"
    expected = (
        r"(\d+) of \1 records read are bad \(\1 missing_field\), more than max_bad_record_fraction=0.001 allows; "
    )
    expected += r"the first missing_field: .*0.jsonl@0 \(source c wants text_field=body; its fields: text(, …)?\); see "
    with pytest.raises(PipelineError, match=expected):
        run(make_config(**fields))
    done = sorted(units.iterdir())
    assert len(done) in (1, 2)  # the worker may be through with the next one by the time that it is stopped
    # again, with nothing done anew
    with pytest.raises(PipelineError, match=expected):
        run(make_config(**fields))
    assert sorted(units.iterdir()) == done
    # a higher limit goes on from there, to the end
    with pytest.raises(PipelineError, match=r"nothing to train on: 120 documents in, dropped: 120 missing_field"):
        run(make_config(**fields, max_bad_record_fraction=1))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('{"id": 1, "meta": {"a": [2]}, "t\\u0065xt": "x"}', ["id", "meta", "text"]),
        ('{ "id" : 1 , "content" : "cut off as the rep…', ["id", "content"]),
        ('{"id": 1, "cont…', ["id"]),
        ("{}", []),
        ('["id"]', []),
        ("{'a column': None}", []),
        ("", []),
    ],
)
def test_names_of_fields_are_read_from_the_beginning_of_an_object(content: str, names: list[str]) -> None:
    assert list(field_names(content)) == names


def test_a_missing_field_is_told_by_the_source_that_misses_it(make_config: MakeConfig) -> None:
    joined = {"name": "b", "type": "jsonl", "files": ["b"], "template": "{title}"}
    config = make_config(sources=[{"name": "a", "type": "jsonl", "files": ["a"]}, joined])
    missing = Dropped(documents=1, examples=[Example(location="b@0", content='{"x": 1}')])
    tallies = [("a", Tally()), ("b", Tally(dropped={"missing_field": missing, "not_text": missing}))]
    assert first_bad(config, tallies, "missing_field") == "b@0 (source b wants template='{title}'; its fields: x)"
    assert first_bad(config, tallies, "not_text") == "b@0"
    names = Example(location="b@0", content='{"a\\nb": 1, "\\ud800": "cut off…')
    tallies = [("b", Tally(dropped={"missing_field": Dropped(documents=1, examples=[names])}))]
    assert first_bad(config, tallies, "missing_field").endswith("its fields: a b, \\ud800, …)")
