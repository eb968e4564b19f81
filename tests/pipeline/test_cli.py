"""The verbs as a user meets them, on one small dataset."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import dump
from pipeline.cli import main
from pipeline.config import PipelineConfig
from pipeline.lengths import Bucket, measure_lengths
from pipeline.shards.format import read_manifest
from pipeline.summary import sample_documents
from pipeline.tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_texts: Callable[..., list[str]]) -> Path:
    """Made by the command from a folder of text files."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tokenizer.json").write_bytes(train_tokenizer(make_texts(50, seed=1), vocab_size=280))
    for index, text in enumerate(make_texts(30, seed=9)):
        (folder / f"{index:02d}.txt").write_text(text)
    (folder / "30.txt").write_bytes(b"abc\xe9")
    config = PipelineConfig.model_validate(
        {
            "name": "cli",
            "output_dir": folder / "dataset",
            "sources": [{"name": "files", "type": "text", "files": [f"{folder}/*.txt"]}],
            "tokenizer": {"path": folder / "tokenizer.json"},
            "validation_fraction": 0.2,
            "max_bad_record_fraction": 0.1,
            "workers": 1,
        }
    )
    (folder / "config.yaml").write_text(dump(config))
    assert main(["run", str(folder / "config.yaml")]) == 0
    return folder / "dataset"


def test_run_again_says_that_it_is_finished(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(dataset.parent / "config.yaml")]) == 0
    tokens = sum(split.tokens for split in read_manifest(dataset).splits.values())
    assert capsys.readouterr().out == (
        f"cli: already finished, 30 documents, {tokens:,} tokens: {dataset} "
        "(the sources are not looked at again; --append adds new files)\n"
    )


@pytest.mark.parametrize("overrides", [["shuffle_seed=1"], ["deduplication.exact={}"]])
def test_what_cannot_be_appended_to_is_not_told_of_append(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str]
) -> None:
    command = ["run", str(dataset.parent / "config.yaml"), f"output_dir={tmp_path}/other", *overrides]
    assert [main(command), main(command)] == [0, 0]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("cli: already finished, ")
    assert last.endswith(f" tokens: {tmp_path}/other")


def test_run_with_another_config_is_one_line(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(dataset.parent / "config.yaml"), "filters.0.min_characters=7"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"smollm2 pipeline: output_dir={dataset} was made with another config (filters.0.min")


def test_a_shard_does_not_append(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--shard", "0/2", "--append", str(dataset.parent / "config.yaml")]) == 2
    assert capsys.readouterr().err == "smollm2 pipeline: --append does not go with --shard; run it without\n"


def test_verify_says_whole(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(dataset)]) == 0
    assert capsys.readouterr().out == f"{dataset}: whole, 2 shards, problems: 0\n"


def test_verify_exits_1_and_names_the_bad_shard(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = dataset / "validation" / "data-00000-000.arrow"
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:-1] + b"\x01")
        assert main(["verify", str(dataset)]) == 1
    finally:
        shard.write_bytes(content)
    printed = capsys.readouterr()
    assert printed.err == "validation/data-00000-000.arrow: contents changed (another digest than the manifest's)\n"
    assert printed.out == f"{dataset}: DAMAGED, 2 shards, problems: 1\n"


def test_verify_of_no_dataset_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == (
        f"smollm2 pipeline: dataset {tmp_path}/none does not exist; make it with `smollm2 pipeline run`\n"
    )


def test_inspect_prints_counts_lengths_and_decoded_samples(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(dataset), "--samples", "1"]) == 0
    out = capsys.readouterr().out
    manifest = read_manifest(dataset)
    train = manifest.splits["train"]
    tokens = sum(split.tokens for split in manifest.splits.values())
    assert f"{train.documents} documents" in out
    assert f"{train.tokens:,} tokens" in out
    assert f"{manifest.text_bytes_kept / tokens:.2f} bytes a token" in out
    assert "dropped invalid_utf8" in out
    assert "more tokens" in out
    first = (dataset.parent / "00.txt").read_text()
    assert repr(first[:20])[1:-1] in out  # the sample is the first training document, decoded


def test_inspect_has_a_row_for_each_source_and_names_the_longest(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(dataset), "--samples", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    manifest = read_manifest(dataset)
    (row,) = [line.split() for line in lines if line.startswith("  files ")]
    bytes_a_token = f"{manifest.text_bytes_kept / manifest.tokens:.2f}"
    assert row == ["files", "30", f"{manifest.tokens:,}", "100.0%", bytes_a_token]
    train = manifest.splits["train"]
    documents = list(sample_documents(dataset, train, count=train.documents))
    name, ids = max(documents, key=lambda document: len(document[1]))
    assert f"  longest {len(ids)}: {name}" in lines


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(Path.unlink, "is missing"), (lambda path: path.write_bytes(b"{"), "has changed since the dataset was made")],
)
def test_inspect_of_a_dataset_without_its_tokenizer_is_one_line_behind_the_counts(
    dataset: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], reason: str
) -> None:
    tokenizer = dataset / "tokenizer.json"
    content = tokenizer.read_bytes()
    try:
        damage(tokenizer)
        assert main(["inspect", str(dataset)]) == 2
    finally:
        tokenizer.write_bytes(content)
    printed = capsys.readouterr()
    assert "tokens a document" in printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith(f"smollm2 pipeline: {tokenizer} {reason}; copy it again from where ")


def test_inspect_draws_the_lengths(dataset: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(dataset), "--plot", str(tmp_path / "lengths.png")]) == 0
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_says_where_a_plot_cannot_be_written(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(dataset), "--plot", str(tmp_path / "none" / "lengths.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"smollm2 pipeline: {tmp_path}/none/.lengths.png.partial: No such file or directory"


def test_run_append_says_what_the_new_version_holds(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / "folder"
    shutil.copytree(dataset.parent, folder)
    config = [str(folder / "config.yaml"), f"output_dir={folder}/dataset"]
    assert main(["run", *config, "--append"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("cli: already finished, 30 documents, ")
    assert said.endswith(f" tokens: {folder}/dataset\n")
    (dataset.parent / "zz.txt").write_text("one more")
    try:
        assert main(["run", *config, "--append"]) == 0
    finally:
        (dataset.parent / "zz.txt").unlink()
    assert capsys.readouterr().out.startswith("cli: 31 documents, ")
    assert main(["inspect", str(folder / "dataset")]) == 0
    assert f"  version 2, after {read_manifest(dataset).digest()[:19]}…\n" in capsys.readouterr().out


def test_the_histogram_counts_every_document_in_powers_of_two(dataset: Path) -> None:
    train = read_manifest(dataset).splits["train"]
    buckets = measure_lengths(dataset, train).powers_of_two()
    assert sum(bucket.documents for bucket in buckets) == train.documents
    lengths = [len(ids) for _, ids in sample_documents(dataset, train, count=train.documents)]
    assert len(lengths) == train.documents
    assert buckets == [
        Bucket(bucket.low, 2 * bucket.low, sum(bucket.low <= length < 2 * bucket.low for length in lengths))
        for bucket in buckets
    ]


def test_samples_are_spread_over_the_split(dataset: Path) -> None:
    train = read_manifest(dataset).splits["train"]
    every = [name for name, _ in sample_documents(dataset, train, count=train.documents)]
    three = [name for name, _ in sample_documents(dataset, train, count=3)]
    assert three == [every[0], every[train.documents // 3], every[2 * train.documents // 3]]


def test_inspect_of_a_damaged_shard_is_one_line(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = dataset / "data-00000-000.arrow"
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[: len(content) // 2])
        assert main(["inspect", str(dataset)]) == 2
    finally:
        shard.write_bytes(content)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"smollm2 pipeline: {shard} cannot be read (")
    assert line.endswith(f"; `smollm2 pipeline verify {dataset}` says more")


def test_train_tokenizer_writes_beside_the_dataset(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(dataset.parent / "config.yaml")
    training = "tokenizer={train: {vocab_size: 280}}"
    assert main(["train-tokenizer", config, training]) == 0
    written = dataset.parent / "dataset-tokenizer.json"
    assert written.is_file()
    assert capsys.readouterr().out.startswith(f"{written}: sha256:")
    assert main(["train-tokenizer", config, training]) == 2
    assert capsys.readouterr().err.endswith("is there already; remove it, or choose another with --output\n")


def test_train_tokenizer_wants_a_config_that_trains(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(dataset.parent / "other.json")
    assert main(["train-tokenizer", str(dataset.parent / "config.yaml"), "--output", output]) == 2
    assert "names an existing tokenizer; to train one, remove it and set tokenizer.train.vocab_size" in (
        capsys.readouterr().err
    )


VERBS = (
    *("run", "commit", "train-tokenizer", "fertility", "mixture", "verify", "inspect"),
    *("merge", "split", "sample", "shuffle", "export"),
)


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)])
def test_help_has_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*verb, "--help"])
    assert exit_info.value.code == 0
    assert "example: smollm2 pipeline " in capsys.readouterr().out


def test_python_m_pipeline_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: smollm2 pipeline")


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\nfrom pipeline.cli import build_parser\nbuild_parser().format_help()\n"
        "heavy = ('datasets', 'torch', 'tokenizers', 'ray', 'rich', 'zstandard')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
