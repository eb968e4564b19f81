"""What a run that comes to its end tells of the records that are not in the dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.load import dump
from pipeline.cli import main
from pipeline.config import PipelineConfig
from pipeline.shards.format import read_manifest

MakeConfig = Callable[..., PipelineConfig]
ReadAnother = Callable[..., list[str]]


@pytest.fixture
def read_another(
    tmp_path: Path, corpus: Path, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> ReadAnother:
    """`read_another(records, "--append", …)`: the command on the corpus and a source of these records; what it warns
    of."""
    first = {"name": "corpus", "type": "jsonl", "files": [str(corpus / "*.jsonl")]}

    def run(
        records: Sequence[object], *options: str, file: str = "1.jsonl", deduplication: Any = None, **of_source: Any
    ) -> list[str]:
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / file).write_text("".join(f"{json.dumps(record)}\n" for record in records))
        other = {"name": "other", "type": "jsonl", "files": [str(tmp_path / "other" / "*.jsonl")]} | of_source
        config = make_config(sources=[first, other], max_bad_record_fraction=0.5, deduplication=deduplication or {})
        (tmp_path / "config.yaml").write_text(dump(config))
        caplog.clear()
        assert main(["run", str(tmp_path / "config.yaml"), *options]) == 0
        return [line.partition(": source ")[2] for line in caplog.messages if ": source " in line]

    return run


def test_a_small_source_of_another_field_is_told(tmp_path: Path, read_another: ReadAnother) -> None:
    assert read_another([{"content": "a text"}, {"content": "another"}]) == [
        "other: none of its 2 records read is in the dataset: 2 missing_field; the first missing_field: "
        f"{tmp_path}/other/1.jsonl@0 (source other wants text_field=text; its fields: content)"
    ]


def test_a_field_to_keep_by_that_no_record_has_is_told(read_another: ReadAnother) -> None:
    records = [{"text": "a text", "lang": "en"}] * 3
    (line,) = read_another(records, keep_if=[{"field": "language", "one_of": ["en"]}])
    assert line.startswith("other: none of its 3 records read is in the dataset: 3 missing_language; the first")
    assert line.endswith("(source other wants keep_if.field=language; its fields: text, lang)")


def test_bad_records_among_good_ones_are_told(tmp_path: Path, read_another: ReadAnother) -> None:
    records = [{"text": "a text"}, {"text": None, "id": 7}, {"text": 42}, {"text": None}]
    assert read_another(records) == [
        "other: 3 of 4 records read are bad and left out: 2 missing_field, 1 not_text; the first missing_field: "
        f"{tmp_path}/other/1.jsonl@19 (source other wants text_field=text, which is null; its fields: text, id)"
    ]


def test_an_append_tells_of_its_own_records(read_another: ReadAnother) -> None:
    assert read_another([{"text": "a text"}] * 5) == []
    (line,) = read_another([{"content": "a text"}], "--append", file="2.jsonl")
    assert line.startswith("other: none of its 1 records read is in the dataset: 1 missing_field")


def test_a_dropped_document_is_no_bad_record(read_another: ReadAnother) -> None:
    records = [{"text": "a text", "lang": lang} for lang in ("en", "de")]
    assert read_another(records, keep_if=[{"field": "lang", "one_of": ["en"]}]) == []


def test_a_source_of_nothing_but_copies_is_told(read_another: ReadAnother, corpus: Path) -> None:
    copies = [json.loads(line) for line in next(corpus.iterdir()).read_text().splitlines()]
    (line,) = read_another(copies, deduplication={"exact": {}})
    assert line.startswith(f"other: none of its {len(copies)} records read is in the dataset: {len(copies)} exact_")


def test_what_the_dataset_itself_holds_is_no_input(
    tmp_path: Path, corpus: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"name": "corpus", "type": "jsonl", "files": [str(tmp_path / "**" / "*.jsonl")]}
    config = make_config(sources=[source], output_dir=tmp_path / "corpus" / ".." / "dataset")
    assert config.output_dir.is_relative_to(tmp_path)
    (tmp_path / "config.yaml").write_text(dump(config))
    assert main(["run", str(tmp_path / "config.yaml")]) == 0
    assert list(config.output_dir.rglob("*.jsonl"))
    assert main(["run", str(tmp_path / "config.yaml"), "--append"]) == 0
    assert "already finished" in capsys.readouterr().out
    assert read_manifest(config.output_dir).version == 1
