from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import dump
from pipeline.cli import main
from pipeline.config import PipelineConfig
from pipeline.fertility_cli import tokenizer_of
from pipeline.tokenizer.train import train_tokenizer

MakeConfig = Callable[..., PipelineConfig]
MakeJsonl = Callable[[Path, list[str]], Path]


@pytest.fixture
def config_file(tmp_path: Path, make_config: MakeConfig, make_jsonl: MakeJsonl) -> Path:
    """Two sources: words that the tokenizer knows, and digits, of which each is a token."""
    make_jsonl(tmp_path / "words.jsonl", ["the shard return " * 20] * 3)
    make_jsonl(tmp_path / "digits.jsonl", ["0123456789"] * 5)
    sources = [
        {"name": name, "type": "jsonl", "files": [str(tmp_path / f"{name}.jsonl")]} for name in ("words", "digits")
    ]
    file = tmp_path / "config.yaml"
    file.write_text(dump(make_config(sources=sources, validation_fraction=0)))
    return file


def test_json_has_every_source_beside_the_reference(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = tmp_path / "reference.json"
    reference.write_bytes(train_tokenizer(["the shard return "] * 9, vocab_size=274))
    assert main(["fertility", str(config_file), "--reference", str(reference), "--json"]) == 0
    sources = json.loads(capsys.readouterr().out)["sources"]
    assert sources["digits"]["text_bytes"] == 50
    assert sources["digits"]["tokenizer"] == {"tokens": 50, "tokens_per_byte": 1.0, "tokens_per_word": 10.0}
    assert sources["digits"]["reference"]["tokens"] == 50
    assert sources["words"]["words"] == 180
    # one merge only: the reference makes more of the same text
    assert sources["words"]["reference"]["tokens"] > sources["words"]["tokenizer"]["tokens"]


def test_the_table_has_a_line_a_source(
    config_file: Path, tokenizer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fertility", str(config_file), "--reference", str(tokenizer_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"tokenizer  {tokenizer_file}"
    assert lines[-1].split() == ["digits", "50", "1.0000", "1.0000", "10.000", "10.000", "1.000"]


def test_the_sample_is_as_large_as_asked(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fertility", str(config_file), "--sample-bytes", "1", "--json"]) == 0
    sources = json.loads(capsys.readouterr().out)["sources"]
    assert [sources[name]["documents"] for name in ("words", "digits")] == [1, 1]


def test_a_trained_tokenizer_is_found_where_it_was_made(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(tokenizer={"train": {"vocab_size": 300}})
    beside = tmp_path / "dataset-tokenizer.json"
    beside.touch()
    assert tokenizer_of(config) == beside
    config.output_dir.mkdir()
    (config.output_dir / "tokenizer.json").touch()
    assert tokenizer_of(config) == config.output_dir / "tokenizer.json"


def test_no_tokenizer_yet_is_one_line(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fertility", str(config_file), "tokenizer={train: {vocab_size: 300}}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no tokenizer yet: neither " in line
    assert line.endswith("make one with `smollm2 pipeline train-tokenizer`, or name one with --tokenizer")


def test_a_tokenizer_that_is_gone_is_named_as_it_was_given(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone.json"
    for given in (["tokenizer.path=" + str(gone)], ["--tokenizer", str(gone)], ["--reference", str(gone)]):
        assert main(["fertility", str(config_file), *given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            f"smollm2 pipeline: {given[0].split('=')[0]}={gone}: No such file or directory; name a tokenizer.json"
        )
