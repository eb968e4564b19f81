from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pipeline.config import PipelineConfig
from pipeline.plan import make_plan
from pipeline.sample import sample_texts
from pipeline.unit import split_of

MakeConfig = Callable[..., PipelineConfig]


def all_texts(corpus: Path) -> list[str]:
    return [json.loads(line)["text"] for file in sorted(corpus.iterdir()) for line in file.read_text().splitlines()]


def test_a_large_sample_is_all_training_documents_in_order(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config(unit_size_bytes=3000)
    expected = [text for text in all_texts(corpus) if split_of(text.encode(), validation_fraction=0.2) == "train"]
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
