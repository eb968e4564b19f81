"""The lines that a user reads: what a verb has made, and what it was asked that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.config import PipelineConfig
from pipeline.run import run
from pipeline.shards.format import DatasetManifest, read_manifest
from pipeline.shards.verify import verify_dataset


@pytest.fixture
def dataset(
    tmp_path: Path,
    make_config: Callable[..., PipelineConfig],
    make_jsonl: Callable[[Path, Sequence[str]], Path],
    make_texts: Callable[..., list[str]],
) -> DatasetManifest:
    """Made by a run, of 24 training documents, in `data` below the test's folder."""
    make_jsonl(tmp_path / "corpus" / "a.jsonl", make_texts(24, seed=1))
    return run(make_config(output_dir=tmp_path / "data", validation_fraction=0)).manifest


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str, str]]:
    """`command("merge all data")`, run in the test's folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run_it(line: str) -> tuple[int, str, str]:
        code = main(line.split())
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run_it


def test_each_verb_says_what_it_made(dataset: DatasetManifest, command: Callable[[str], tuple[int, str, str]]) -> None:
    all_of_it = f"24 documents, {dataset.tokens:,} tokens"
    assert command("merge all data") == (0, f"all: {all_of_it} (1 shards linked, 0 copied)\n", "")
    assert command("merge copy data --copy") == (0, f"copy: {all_of_it} (0 shards linked, 1 copied)\n", "")
    assert command("shuffle data shuffled --seed 3") == (0, f"shuffled: {all_of_it}\n", "")
    assert command("export data megatron --format megatron") == (0, f"megatron: {all_of_it} (megatron)\n", "")
    code, out, err = command("split data a b c --documents 4,8")
    tokens = [read_manifest(Path(part)).tokens for part in "abc"]
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{part}: {documents} documents, {count:,} tokens"
        for part, documents, count in zip("abc", (4, 8, 12), tokens, strict=True)
    ]
    code, out, err = command("sample data some --fraction 0.25")
    assert (code, err) == (0, "")
    assert out == f"some: 6 documents, {read_manifest(Path('some')).tokens:,} tokens\n"


def test_what_is_made_of_a_run_can_be_inspected_and_verified(
    dataset: DatasetManifest, command: Callable[[str], tuple[int, str, str]]
) -> None:
    for verb in ("merge x data", "shuffle data x", "sample data x --tokens 100", "split data x y --fractions 0.5"):
        assert command(verb)[0] == 0
        assert verify_dataset(Path("x"), threads=1) == []
        code, out, _ = command("inspect x")
        assert code == 0
        name = verb.split()[0]
        assert f"  made by {name}" in out
        assert f" of: {dataset.digest()[:19]}…" in out
        Path("x").rename(f"{name}-x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("split data a b --fractions half", "--fractions half: wanted numbers with commas between them"),
        ("split data a b --documents 1.5", "--documents 1.5: wanted whole numbers with commas between them"),
        ("split data a b --tokens 0", "--tokens 0: wanted numbers above 0"),
        ("split data a b --fractions nan", "--fractions nan: wanted numbers above 0"),
        ("split data a b --fractions inf", "--fractions inf: wanted numbers above 0"),
        ("sample data a --fraction 2", "--fraction 2.0 of data asks for 48 of 24 training documents; ask for 1 to 24"),
        ("sample data a --fraction nan", "--fraction nan of data: wanted a number above 0, up to 1"),
        ("merge a nowhere", "dataset nowhere does not exist; make it with `smollm2 pipeline run`"),
    ],
)
def test_what_cannot_be_is_one_line(
    dataset: DatasetManifest, command: Callable[[str], tuple[int, str, str]], line: str, message: str
) -> None:
    assert command(line) == (2, "", f"smollm2 pipeline: {message}\n")
    assert not Path("a").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("split data a b", "one of the arguments --fractions --documents --tokens is required"),
        ("sample data a --documents 3 --tokens 4", "argument --tokens: not allowed with argument --documents"),
        ("sample data a --documents three", "argument --documents: invalid int value: 'three'"),
        ("shuffle data a --seed -1", "argument --seed: -1 is not in 0 to 2**64 - 1"),
        ("shuffle data a --seed 18446744073709551616", "is not in 0 to 2**64 - 1"),
        ("shuffle data a --seed x", "argument --seed: 'x' is not a whole number"),
        ("shuffle data a --bucket-mib 0", "argument --bucket-mib: 0 is not in 1 to 2048"),
        ("shuffle data a --bucket-mib 2049", "argument --bucket-mib: 2049 is not in 1 to 2048"),
        ("export data a", "the following arguments are required: --format"),
    ],
)
def test_what_is_misspelt_is_told_with_the_usage(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(line.split())
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
