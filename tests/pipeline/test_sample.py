from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import sample as sample_module
from pipeline.config import PipelineConfig
from pipeline.document import PipelineError, SourceError
from pipeline.executors import ExecutorSettings, Lost, Started, execute
from pipeline.plan import Unit, make_plan
from pipeline.run import make_tokenizer
from pipeline.sample import SampleTask, sample_in_processes, sample_texts
from pipeline.unit import split_of

MakeConfig = Callable[..., PipelineConfig]


def all_texts(corpus: Path) -> list[str]:
    return [json.loads(line)["text"] for file in sorted(corpus.iterdir()) for line in file.read_text().splitlines()]


def test_a_large_sample_is_all_training_documents_in_order(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config(unit_size_bytes=3000)
    expected = [text for text in all_texts(corpus) if split_of(text, validation_fraction=0.2) == "train"]
    assert list(sample_texts(config, make_plan(config), sample_bytes=1 << 30)) == expected


def test_a_small_sample_takes_the_beginning_of_every_unit(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config(unit_size_bytes=12_000, validation_fraction=0)
    plan = make_plan(config)
    assert len(plan.units) == 3  # a file each
    texts = all_texts(corpus)
    assert list(sample_texts(config, plan, sample_bytes=1)) == [texts[0], texts[40], texts[80]]


def test_a_sample_is_about_as_large_as_asked(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config(unit_size_bytes=3000)
    sample = list(sample_texts(config, make_plan(config), sample_bytes=9_000))
    longest = max(len(text.encode()) for text in sample)
    units = len(make_plan(config).units)
    # a unit may pass its share by less than a document
    assert 9_000 <= sum(len(text.encode()) for text in sample) < 9_000 + units * longest


def test_processes_read_the_same_texts(corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_module, "MIN_PARALLEL_BYTES", 1)
    config = make_config(unit_size_bytes=3000)
    plan = make_plan(config)
    expected = list(sample_texts(config, plan, sample_bytes=9_000))
    got = list(sample_in_processes(config, plan, sample_bytes=9_000, workers=2))
    assert len(expected) > 20
    assert sorted(got) == sorted(expected)


def test_a_trained_tokenizer_does_not_depend_on_the_number_of_workers(
    corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"unit_size_bytes": 3000, "tokenizer": {"train": {"vocab_size": 300, "sample_bytes": 9_000}}}
    one = make_config(**fields, workers=1)
    alone = make_tokenizer(one, make_plan(one))
    # were it not read by processes, this would be the same program twice
    monkeypatch.setattr(sample_module, "MIN_PARALLEL_BYTES", 1)
    monkeypatch.setattr(sample_module, "sample_texts", None)
    two = make_config(**fields, workers=2)
    assert make_tokenizer(two, make_plan(two)) == alone


def test_damage_in_a_sample_read_by_processes_is_told(
    corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_module, "MIN_PARALLEL_BYTES", 1)
    (corpus / "3.jsonl.gz").write_bytes(b"no gzip")
    source = {"name": "c", "type": "jsonl", "files": [f"{corpus}/*"]}
    training = {"train": {"vocab_size": 300, "sample_bytes": 9_000}}
    config = make_config(sources=[source], unit_size_bytes=3000, tokenizer=training, workers=2)
    with pytest.raises(SourceError, match=r"3.jsonl.gz is damaged or truncated \([^\n]*\); fetch it again$"):
        make_tokenizer(config, make_plan(config))


def test_a_wrong_field_is_named_before_the_size_of_the_vocabulary(corpus: Path, make_config: MakeConfig) -> None:
    source = {"name": "web", "type": "jsonl", "files": [str(corpus / "0.jsonl")], "text_field": "txt"}
    config = make_config(sources=(source,), tokenizer={"train": {"vocab_size": 300}})
    with pytest.raises(PipelineError) as caught:
        make_tokenizer(config, make_plan(config))
    assert str(caught.value) == (
        "there is no text to train a tokenizer on: of source 'web' are dropped 40 missing_field, "
        f"the first {corpus / '0.jsonl'}@0 (source web wants text_field=txt; its fields: text, …)"
    )


def test_texts_that_a_dead_worker_told_are_not_taken_twice(
    corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a unit is told in batches of a text each; its worker is lost after two, and another tells it from its start
    monkeypatch.setattr(sample_module, "MIN_PARALLEL_BYTES", 1)
    monkeypatch.setattr(sample_module, "_BATCH_CHARACTERS", 1)
    config = make_config(unit_size_bytes=3000)
    plan = make_plan(config)

    def one_dies(settings: object, make_task: Callable[[], SampleTask], units: Sequence[Unit]) -> Iterator[object]:
        task = make_task()
        for unit in units:
            told: list[object] = []
            task(unit, told.append)
            yield from [Started(unit, "pid 1"), *told[:2], Lost(unit, "was killed"), Started(unit, "pid 2"), *told]

    monkeypatch.setattr(sample_module, "execute", one_dies)
    expected = list(sample_texts(config, plan, sample_bytes=9_000))
    assert list(sample_in_processes(config, plan, sample_bytes=9_000, workers=2)) == expected


def test_a_limit_of_memory_holds_for_a_small_sample_too(
    corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_worker_memory_bytes=256 << 20)
    plan = make_plan(config)
    expected = list(sample_texts(config, plan, sample_bytes=9_000))
    settings: list[ExecutorSettings] = []

    def noting(given: ExecutorSettings, *others: Any) -> Iterator[Any]:
        settings.append(given)
        return execute(given, *others)

    monkeypatch.setattr(sample_module, "execute", noting)
    assert list(sample_in_processes(config, plan, sample_bytes=9_000, workers=1)) == expected
    assert settings == [ExecutorSettings("local", 1, 256 << 20)]
