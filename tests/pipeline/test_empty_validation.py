"""A dataset without validation documents says so: a training run would refuse it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import dump
from pipeline.cli import main
from pipeline.config import PipelineConfig
from pipeline.empty_validation import wanted_fraction
from pipeline.shards.format import read_manifest


def test_run_and_inspect_warn_of_an_empty_validation_split(
    corpus: Path,
    tmp_path: Path,
    make_config: Callable[..., PipelineConfig],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump(make_config(validation_fraction=1e-9)))
    dataset = tmp_path / "dataset"
    assert main(["run", str(config)]) == 0
    tokens = read_manifest(dataset).tokens
    warning = (
        "the validation split is empty, and a training run needs a sequence of it at least; raise validation_fraction "
        f"(now 1e-09) to some 0.1, for about 12 documents, {0.1 * tokens:,.0f} tokens, and make the dataset again"
    )
    assert f"test: {warning}" in caplog.messages
    assert main(["inspect", str(dataset)]) == 0
    assert f"  warning: {warning}\n" in capsys.readouterr().out
    # a dataset made of others has no config of its own
    assert main(["merge", str(tmp_path / "all"), str(dataset)]) == 0
    assert main(["inspect", str(tmp_path / "all")]) == 0
    assert "raise validation_fraction of the config that made it to some 0.1" in capsys.readouterr().out


def test_a_dataset_with_validation_documents_does_not_warn(
    corpus: Path, tmp_path: Path, make_config: Callable[..., PipelineConfig], caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump(make_config()))
    assert main(["run", str(config)]) == 0
    assert "validation" not in caplog.text


@pytest.mark.parametrize(
    ("documents", "tokens", "given", "wanted"),
    [
        (120, 4_000, 0.001, 0.1),
        (120, 4_000, 0.1, 0.2),
        (12, 400, 0.4, 0.5),
        # 65,536 of 10,000,000 tokens are 0.0066
        (20_000, 10_000_000, 0.0, 0.007),
        # 10 of 4,000 documents are 0.0025
        (4_000, 40_000_000, 0.001, 0.003),
    ],
)
def test_the_fraction_gives_ten_documents_and_some_sequences_but_a_tenth_of_a_small_corpus(
    documents: int, tokens: int, given: float, wanted: float
) -> None:
    assert wanted_fraction(documents=documents, tokens=tokens, given=given) == pytest.approx(wanted)
