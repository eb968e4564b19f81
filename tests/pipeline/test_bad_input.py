"""Bad input as a user meets it: the command says one line with the way out, or counts the record and goes on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from configs.load import dump
from pipeline.cli import main
from pipeline.config import PipelineConfig
from pipeline.shards.format import read_manifest

MakeConfig = Callable[..., PipelineConfig]
MakeTexts = Callable[..., list[str]]

# the reference needs no comparison at the start
FAST_START = {"engine": "tokenizers"}


@pytest.fixture
def told(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """Run the command on files; returns its exit code and the lines on stderr."""

    def run(
        *files: Path, kind: str = "jsonl", tokenizer: dict[str, Any] | None = None, **fields: Any
    ) -> tuple[int, list[str]]:
        source = {"name": "corpus", "type": kind, "files": [str(file) for file in files]}
        settings = json.loads(make_config().tokenizer.model_dump_json()) | FAST_START | (tokenizer or {})
        config = make_config(sources=[source], tokenizer=settings, validation_fraction=0, **fields)
        (tmp_path / "config.yaml").write_text(dump(config))
        code = main(["run", str(tmp_path / "config.yaml")])
        return code, capsys.readouterr().err.splitlines()

    return run


def lines_of(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_a_file_that_is_half_gzip(tmp_path: Path, told: Any, make_texts: MakeTexts) -> None:
    whole = gzip.compress(lines_of(make_texts(200, seed=1)))
    file = tmp_path / "half.jsonl.gz"
    file.write_bytes(whole[: len(whole) // 2])
    code, (line,) = told(file)
    assert code == 2
    assert line == (
        f"smollm2 pipeline: {file} is damaged or truncated (Compressed file ended before the end-of-stream marker was "
        "reached); fetch it again"
    )


def test_a_file_that_goes_on_as_plain_text_after_its_gzip(tmp_path: Path, told: Any, make_texts: MakeTexts) -> None:
    content = lines_of(make_texts(20, seed=1))
    file = tmp_path / "half.jsonl.gz"
    file.write_bytes(gzip.compress(content) + content)
    code, (line,) = told(file)
    assert code == 2
    assert line.startswith(f"smollm2 pipeline: {file} is damaged or truncated (Not a gzipped file")


def test_a_parquet_of_another_schema_among_others(tmp_path: Path, told: Any) -> None:
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": ["two"]}), tmp_path / "b.parquet")
    code, (line,) = told(tmp_path / "*.parquet", kind="parquet")
    assert code == 2
    assert line == f"smollm2 pipeline: source 'corpus': {tmp_path}/b.parquet has no column 'text'; it has body"


@pytest.mark.parametrize("value", [None, 5, ["a"], {"a": 1}], ids=["null", "number", "list", "object"])
def test_a_field_that_is_sometimes_no_text_is_counted_up_to_the_limit(
    tmp_path: Path, told: Any, make_texts: MakeTexts, value: object
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines_of(make_texts(9, seed=1)) + json.dumps({"text": value}).encode() + b"\n")
    reason = "missing_field" if value is None else "not_text"
    code, (line,) = told(file, max_bad_record_fraction=0.05)
    assert code == 2
    assert line.startswith(f"smollm2 pipeline: 1 of 10 records read are bad (1 {reason}), more than max_bad_record_")
    assert "raise the limit" in line
    assert told(file, max_bad_record_fraction=0.1) == (0, [])
    manifest = read_manifest(tmp_path / "dataset")
    assert (manifest.documents_in, manifest.splits["train"].documents) == (10, 9)
    assert manifest.dropped[reason].documents == 1


def test_a_web_archive_that_is_cut_off(tmp_path: Path, told: Any) -> None:
    pytest.importorskip("warcio", reason="needs the extra web")
    pytest.importorskip("trafilatura", reason="needs the extra web")
    body = b"plain text that is long enough" * 40
    record = b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:uuid:1>\r\nContent-Length: %d\r\n\r\n"
    whole = gzip.compress(record % len(body) + body + b"\r\n\r\n")
    file = tmp_path / "a.warc.gz"
    file.write_bytes(whole + whole[:-20])
    code, (line,) = told(file, kind="warc")
    assert code == 2
    assert line.startswith(f"smollm2 pipeline: {file} is damaged or truncated (")


@pytest.mark.campaign
def test_a_line_of_100_mb_among_others(tmp_path: Path, told: Any) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines_of(["one"]) + b'{"text": "' + b"the shard " * 10_000_000 + b'"}\n' + lines_of(["two"]))
    code, lines = told(file, tokenizer={"engine": "splintr"})
    assert code == 0, lines
    split = read_manifest(tmp_path / "dataset").splits["train"]
    assert split.documents == 3
    assert split.tokens > 20_000_000


def test_a_tokenizer_without_an_eos(tmp_path: Path, told: Any, make_texts: MakeTexts, tokenizer_file: Path) -> None:
    tree = json.loads(tokenizer_file.read_bytes())
    del tree["model"]["vocab"]["<|endoftext|>"]
    tree["added_tokens"] = []
    (tmp_path / "t.json").write_text(json.dumps(tree))
    (tmp_path / "a.jsonl").write_bytes(lines_of(make_texts(3, seed=1)))
    code, (line,) = told(tmp_path / "a.jsonl", tokenizer={"path": str(tmp_path / "t.json")})
    assert code == 2
    assert line == (
        f"smollm2 pipeline: {tmp_path}/t.json has no token '<|endoftext|>'; "
        "set tokenizer.eos_token to the one that ends documents"
    )


def test_a_tokenizer_that_cannot_encode_the_corpus(tmp_path: Path, told: Any) -> None:
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "</s>": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "t.json"))
    (tmp_path / "a.jsonl").write_bytes(lines_of(["the shard"]))
    code, (line,) = told(tmp_path / "a.jsonl", tokenizer={"path": str(tmp_path / "t.json"), "eos_token": "</s>"})
    assert code == 2
    assert line.startswith("smollm2 pipeline: the tokenizer cannot encode this corpus: ")
    assert line.endswith("give it an unknown token (unk_token or unk_id of its model), or take another tokenizer")


def test_an_output_folder_of_another_config_says_what_differs(tmp_path: Path, told: Any, make_texts: MakeTexts) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines_of(make_texts(3, seed=1)))
    assert told(tmp_path / "a.jsonl") == (0, [])
    code, (line,) = told(tmp_path / "a.jsonl", filters=[{"type": "length", "min_characters": 2}], unit_size_bytes=100)
    assert code == 2
    assert line == (
        f"smollm2 pipeline: output_dir={tmp_path}/dataset was made with another config "
        "(filters.0.min_characters: 1 → 2; unit_size_bytes: null → 100); "
        "choose another output_dir, restore the config, or remove the folder to start over"
    )


def test_an_output_folder_that_is_a_file(tmp_path: Path, told: Any, make_texts: MakeTexts) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines_of(make_texts(3, seed=1)))
    (tmp_path / "dataset").write_text("notes")
    code, (line,) = told(tmp_path / "a.jsonl")
    assert code == 2
    assert line == (
        f"smollm2 pipeline: output_dir={tmp_path}/dataset is a file, wanted a folder; choose another, or remove it"
    )
    assert (tmp_path / "dataset").read_text() == "notes"
