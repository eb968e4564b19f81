"""What a fast engine has made goes as a whole once it is caught in a difference, also what was not compared."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from pipeline.config import PipelineConfig
from pipeline.run import run
from pipeline.tokenizer import encode as encode_module
from pipeline.tokenizer.encode import Encoder
from pipeline.tokenizer.engine import FlatIds, TokenizersEngine
from pipeline.unit import DISTRUST_FILE

MakeConfig = Callable[..., PipelineConfig]


class WrongOnRare:
    """Gives other ids for a text that holds RARE."""

    name = "splintr"
    version = "0.0"

    def __init__(self, tree: dict[str, Any]) -> None:
        self._engine = TokenizersEngine(Tokenizer.from_str(json.dumps(tree)))

    def encode(self, texts: Sequence[str]) -> FlatIds:
        flat = self._engine.encode(texts)
        wrong = np.repeat([text.startswith("RARE") for text in texts], np.diff(flat.offsets))
        return FlatIds((flat.ids + wrong).astype(flat.ids.dtype), flat.offsets)


@pytest.fixture
def config(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineConfig:
    """Two units; of each only the first document is compared, which is rare in the second."""
    monkeypatch.setattr(encode_module, "SplintrEngine", WrongOnRare)
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
    config: PipelineConfig, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
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
    run(config)
    assert shards_of(config.output_dir) == expected
