"""What a fast engine has made goes as a whole once it is caught in a difference, also what was not compared."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from pipeline import encoding_pass
from pipeline.config import PipelineConfig
from pipeline.document import PipelineError
from pipeline.executors import Template, execute
from pipeline.run import run
from pipeline.shards.format import read_manifest
from pipeline.tokenizer import definition as definition_module
from pipeline.tokenizer.encode import Encoder
from pipeline.tokenizer.engine import FlatIds, TokenizersEngine
from pipeline.unit import DISTRUST_FILE

MakeConfig = Callable[..., PipelineConfig]


class WrongOnRare:
    """Gives other ids for a text that holds RARE."""

    name = "splintr"
    version = "0.0"

    def __init__(self, content: bytes) -> None:
        self._engine = TokenizersEngine(Tokenizer.from_str(content.decode()))

    def encode(self, texts: Sequence[str]) -> FlatIds:
        flat = self._engine.encode(texts)
        wrong = np.repeat([text.startswith("RARE") for text in texts], np.diff(flat.offsets))
        return FlatIds((flat.ids + wrong).astype(flat.ids.dtype), flat.offsets)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing begins ahead")
def test_a_run_s_workers_come_of_the_process_that_has_loaded_the_engines(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text('{"text": "a shard"}\n' * 9)
    templates: list[Template] = []
    pids: list[int | None] = []
    begun_ahead = encoding_pass.begin_ahead

    @contextmanager
    def noting(*arguments: Any) -> Iterator[Template | None]:
        with begun_ahead(*arguments) as template:
            assert template is not None
            assert template._process is not None
            templates.append(template)
            pids.append(template._process.pid)
            yield template
            pids.append(template._process.pid)  # still the one that was ready before there was a task
            assert template._is_told

    monkeypatch.setattr(encoding_pass, "begin_ahead", noting)
    run(make_config())
    assert len(templates) == 1
    assert len(set(pids)) == 1 < len(pids)


@pytest.fixture
def config(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineConfig:
    """Two units; of each only the first document is compared, which is rare in the second."""
    monkeypatch.setattr(definition_module, "SplintrEngine", WrongOnRare)
    monkeypatch.setattr(Encoder, "choose", lambda *_, **__: "splintr")
    (tmp_path / "corpus").mkdir()
    for name, texts in (("0", ["a shard", "RARE return"]), ("1", ["RARE shard", "a return"])):
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "corpus" / f"{name}.jsonl").write_text("".join(lines))
    return make_config(executor="serial", unit_size_bytes=60, validation_fraction=0)


def shards_of(dataset: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in dataset.glob("*.arrow")}


@pytest.fixture
def expected(config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "choose", lambda *_, **__: "tokenizers")
        run(config.model_copy(update={"output_dir": tmp_path / "expected"}))
    return shards_of(tmp_path / "expected")


def test_units_done_before_the_difference_are_done_again(
    config: PipelineConfig, expected: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    manifest = run(config).manifest
    assert shards_of(config.output_dir) == expected
    assert all(record.engine.startswith("tokenizers ") for record in manifest.encoding)
    [line] = caplog.messages
    assert "splintr 0.0 differs from tokenizers" in line
    assert line.endswith("all units that splintr has made are done again by tokenizers")


def test_a_later_attempt_does_not_trust_the_engine_either(
    config: PipelineConfig,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Killed after the difference was told, before any unit was done again."""

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.encoding_pass.log.warning", die)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert (config.output_dir / ".work" / DISTRUST_FILE).is_file()
    assert shards_of(config.output_dir) != expected
    passes: list[Sequence[Any]] = []

    def noting(settings: Any, make_task: Any, items: Sequence[Any], **others: Any) -> Iterator[Any]:
        passes.append(items)
        return execute(settings, make_task, items, **others)

    monkeypatch.setattr("pipeline.encoding_pass.execute", noting)
    caplog.set_level(logging.WARNING)
    run(config)
    assert shards_of(config.output_dir) == expected
    # one pass, as the reference does at once what was doubtful
    assert [len(items) for items in passes] == [1]
    assert caplog.messages == []


def add_file(tmp_path: Path, *texts: str) -> None:
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "corpus" / "2.jsonl").write_text("".join(lines))


def test_an_append_does_not_trust_an_engine_that_was_caught_before(config: PipelineConfig, tmp_path: Path) -> None:
    run(config)
    add_file(tmp_path, "a shard", "RARE 12")  # of which the second is not compared
    append = run(config, append=True).manifest
    assert all(record.engine.startswith("tokenizers ") for record in append.encoding)
    whole = config.model_copy(update={"output_dir": tmp_path / "whole"})
    run(whole)
    assert shards_of(config.output_dir) == shards_of(whole.output_dir)


def test_a_version_by_an_engine_that_is_caught_now_is_not_added_to(
    config: PipelineConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "corpus" / "1.jsonl").unlink()
    run(config)
    before, manifest = shards_of(config.output_dir), read_manifest(config.output_dir)
    add_file(tmp_path, "RARE shard")
    expected = (
        r"^splintr 0.0 differs from tokenizers .*; 1 of 1 units of .*dataset were made by such an engine and are "
        r"not made again by --append; make a new dataset of all files with tokenizer.engine=tokenizers, or remove "
        r".*/.work to leave the finished dataset as it is$"
    )
    for _ in range(2):  # the second attempt knows it at once
        with pytest.raises(PipelineError, match=expected):
            run(config, append=True)
    assert "are done again" not in caplog.text
    assert shards_of(config.output_dir).keys() - before.keys() == {"data-00001-000.arrow"}
    shutil.rmtree(config.output_dir / ".work")
    assert run(config).was_finished
    assert (shards_of(config.output_dir), read_manifest(config.output_dir)) == (before, manifest)
