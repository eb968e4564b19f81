"""New versions of a dataset: what they hold, what they leave alone, and an append that does not come to its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.load import dump
from pipeline import assembly
from pipeline.cli import main
from pipeline.config import PipelineConfig
from pipeline.derived.merge import merge
from pipeline.document import PipelineError
from pipeline.run import run
from pipeline.shards.format import DatasetError, read_manifest
from pipeline.shards.verify import verify_dataset
from pipeline.workspace import Workspace

MakeConfig = Callable[..., PipelineConfig]
MakeTexts = Callable[..., list[str]]
MakeJsonl = Callable[[Path, Sequence[str]], Path]
SMALL_UNITS = {"unit_size_bytes": 3000}


@pytest.fixture
def config(corpus: Path, make_config: MakeConfig) -> PipelineConfig:
    """Of a dataset that is finished, as version 1."""
    config = make_config(**SMALL_UNITS)
    run(config)
    return config


@pytest.fixture
def add_files(corpus: Path, make_texts: MakeTexts, make_jsonl: MakeJsonl) -> Callable[..., list[Path]]:
    """`add_files("a", "z")` to the corpus; by their names they come before and after those that are there."""

    def add(*names: str) -> list[Path]:
        return [make_jsonl(corpus / f"{name}.jsonl", make_texts(30, seed=ord(name))) for name in names]

    return add


def stop(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def keep(workspace: Workspace) -> None:
    """Instead of removing it."""


def files_of(dataset: Path) -> dict[str, bytes]:
    """All but what tells times and processes."""
    return {
        path.relative_to(dataset).as_posix(): path.read_bytes()
        for path in sorted(dataset.rglob("*"))
        if path.is_file() and path.name not in ("report.json", "report.html", "status.json", ".lock")
    }


def test_a_new_version_has_the_shards_of_the_old_and_those_of_the_new_files_alone(
    config: PipelineConfig, tmp_path: Path, make_config: MakeConfig, add_files: Callable[..., list[Path]]
) -> None:
    old = read_manifest(config.output_dir)
    before = {path: path.stat() for path in config.output_dir.rglob("*.arrow")}
    new_files = add_files("!", "z")
    alone = make_config(
        output_dir=tmp_path / "alone",
        sources=[{"name": "corpus", "type": "jsonl", "files": [str(path) for path in new_files]}],
        **SMALL_UNITS,
    )
    new = run(alone).manifest
    manifest = run(config, append=True).manifest
    assert manifest == read_manifest(config.output_dir)
    for name, split in manifest.splits.items():
        expected = [*old.splits[name].shards, *new.splits[name].shards]
        assert [shard.digest for shard in split.shards] == [shard.digest for shard in expected]
        assert split.documents == old.splits[name].documents + new.splits[name].documents
    assert manifest.documents_in == old.documents_in + new.documents_in == 180
    assert manifest.text_bytes_kept == old.text_bytes_kept + new.text_bytes_kept
    assert manifest.sources["corpus"].documents == manifest.documents
    assert sum(record.pieces for record in manifest.encoding) == 180
    assert (manifest.version, manifest.previous) == (2, old.digest())
    assert verify_dataset(config.output_dir, threads=1) == []
    assert not (config.output_dir / ".work").exists()
    for path, status in before.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    report = json.loads((config.output_dir / "report.json").read_bytes())
    assert report["documents_kept"] == manifest.documents


def test_load_from_disk_gives_the_new_documents_too(
    config: PipelineConfig, add_files: Callable[..., list[Path]]
) -> None:
    datasets = pytest.importorskip("datasets")
    add_files("z")
    manifest = run(config, append=True).manifest
    train = datasets.load_from_disk(str(config.output_dir))
    assert len(train) == manifest.splits["train"].documents
    assert "z.jsonl" in train[-1]["document_id"]


def test_bytes_do_not_depend_on_the_workers(
    config: PipelineConfig, tmp_path: Path, make_config: MakeConfig, add_files: Callable[..., list[Path]]
) -> None:
    shutil.copytree(config.output_dir, tmp_path / "other")
    add_files("a", "b", "z")
    run(config, append=True)
    run(make_config(output_dir=tmp_path / "other", workers=3, **SMALL_UNITS), append=True)
    assert files_of(tmp_path / "other") == files_of(config.output_dir)


def test_versions_follow_each_other(config: PipelineConfig, add_files: Callable[..., list[Path]]) -> None:
    digests = [read_manifest(config.output_dir).digest()]
    for version, name in ((2, "a"), (3, "z")):
        add_files(name)
        manifest = run(config, append=True).manifest
        assert (manifest.version, manifest.previous) == (version, digests[-1])
        digests.append(manifest.digest())
    assert len(set(digests)) == 3
    lines = (config.output_dir / "units.jsonl").read_text().splitlines()
    units = [json.loads(line) for line in lines]
    assert [unit["unit"]["index"] for unit in units] == list(range(len(units)))
    assert sorted({unit["version"] for unit in units}) == [1, 2, 3]
    assert verify_dataset(config.output_dir, threads=1) == []


def test_nothing_new_changes_nothing(config: PipelineConfig, add_files: Callable[..., list[Path]]) -> None:
    add_files("z")
    for append_it, version in ((True, 2), (True, 2), (False, 2)):
        before = files_of(config.output_dir)
        result = run(config, append=append_it)
        assert result.manifest.version == version
        if result.was_finished:
            assert files_of(config.output_dir) == before
    assert result.was_finished


def test_a_further_source_may_be_added(
    config: PipelineConfig, tmp_path: Path, make_config: MakeConfig, make_texts: MakeTexts, make_jsonl: MakeJsonl
) -> None:
    make_jsonl(tmp_path / "code" / "a.jsonl", make_texts(10, seed=77))
    (old,) = config.sources
    code = {"name": "code", "type": "jsonl", "files": [f"{tmp_path}/code/*.jsonl"]}
    with_code = make_config(sources=[code, old.model_dump()], **SMALL_UNITS)
    manifest = run(with_code, append=True).manifest
    assert {name: source.documents for name, source in manifest.sources.items()} == {"corpus": 120, "code": 10}
    # the config of the new version is the new one
    assert run(with_code).was_finished
    with pytest.raises(PipelineError, match="was made with another config"):
        run(config)


def test_two_sources_may_read_one_file(config: PipelineConfig, corpus: Path, make_config: MakeConfig) -> None:
    (old,) = config.sources
    again = {"name": "again", "type": "jsonl", "files": [f"{corpus}/0.jsonl"]}
    manifest = run(make_config(sources=[old.model_dump(), again], **SMALL_UNITS), append=True).manifest
    assert {name: source.documents for name, source in manifest.sources.items()} == {"corpus": 120, "again": 40}


def test_a_tokenizer_is_not_trained_anew(
    corpus: Path, make_config: MakeConfig, add_files: Callable[..., list[Path]]
) -> None:
    config = make_config(tokenizer={"train": {"vocab_size": 290, "sample_bytes": 5000}})
    first = run(config).manifest
    add_files("!", "z")
    assert run(config, append=True).manifest.tokenizer == first.tokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_fraction": 0.1}, r"in more \(validation_fraction: 0.2 → 0.1\); restore the config, or choose"),
        ({"name": "other", "unit_size_bytes": 9}, r"name: \"test\" → \"other\"; unit_size_bytes: 3000 → 9"),
        ({"sources": [{"name": "new", "type": "jsonl", "files": ["*"]}]}, r"in more \(source 'corpus' is gone\)"),
        (
            {"sources": [{"name": "corpus", "type": "jsonl", "files": ["*"], "text_field": "body"}]},
            r"in more \(source 'corpus'.text_field: \"text\" → \"body\"\)",
        ),
    ],
)
def test_a_config_that_differs_in_more_is_refused(
    config: PipelineConfig, make_config: MakeConfig, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(PipelineError, match=r"--append may add files and sources only, .*" + message):
        run(make_config(**SMALL_UNITS | change), append=True)


@pytest.mark.parametrize("act", ["remove", "change"])
def test_an_old_file_that_is_not_what_it_was_is_refused(
    config: PipelineConfig, corpus: Path, add_files: Callable[..., list[Path]], act: str
) -> None:
    add_files("z")
    before = files_of(config.output_dir)
    if act == "remove":
        (corpus / "1.jsonl").unlink()
    else:
        with (corpus / "1.jsonl").open("a") as file:
            file.write("\n")
    what = "is gone" if act == "remove" else r"has changed \(\d+ bytes, .* → .*\)"
    expected = (
        rf"--append adds files to those of .*, but of those: .*1.jsonl {what}; restore them, or make a dataset of"
    )
    with pytest.raises(PipelineError, match=expected):
        run(config, append=True)
    assert files_of(config.output_dir) == before


def test_what_is_not_finished_cannot_be_appended_to(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config()
    expected = r"--append adds to a finished dataset, and .*dataset is none; run without --append first$"
    with pytest.raises(PipelineError, match=expected):
        run(config, append=True)
    assert not config.output_dir.exists()


def test_a_merged_dataset_cannot_be_appended_to_or_run_again(
    config: PipelineConfig, tmp_path: Path, make_config: MakeConfig
) -> None:
    merge(tmp_path / "merged", [config.output_dir])
    merged = make_config(output_dir=tmp_path / "merged", **SMALL_UNITS)
    with pytest.raises(
        PipelineError, match=r"merged was made by `smollm2 pipeline merge`, not by a run; make a dataset"
    ):
        run(merged, append=True)
    with pytest.raises(PipelineError, match=r"merged was made by `smollm2 pipeline merge`; choose another"):
        run(merged)


def test_units_of_which_the_last_are_missing_are_refused(
    config: PipelineConfig, add_files: Callable[..., list[Path]]
) -> None:
    units = config.output_dir / "units.jsonl"
    units.write_bytes(b"".join(units.read_bytes().splitlines(keepends=True)[:-1]))
    add_files("z")
    before = files_of(config.output_dir)
    with pytest.raises(
        PipelineError, match=r"units.jsonl is damaged \(its units are of \d+ documents, the manifest of"
    ):
        run(config, append=True)
    assert files_of(config.output_dir) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "units.jsonl",
            None,
            r"units.jsonl is missing, and with it what .* was made of; make a dataset of the new files",
        ),
        (
            "units.jsonl",
            b"{}\n",
            r"units.jsonl is damaged \(Field required\); make a dataset of the new files and merge",
        ),
        (
            "units.jsonl",
            b"",
            r"units.jsonl is damaged \(its units are of 0 documents, the manifest of 120\); make a dataset of the new",
        ),
        ("config.json", None, r"config.json is missing or damaged; restore it$"),
        ("config.json", b"[", r"config.json is missing or damaged; restore it$"),
        ("tokenizer.json", b"{}", r"tokenizer.json is not what made version 1 of .* \(sha256:.*…\); restore it$"),
        ("data-00001-000.arrow", None, r"data-00001-000.arrow cannot be read \(missing\); `smollm2 pipeline verify"),
    ],
)
def test_a_dataset_that_is_not_whole_is_refused(
    config: PipelineConfig, add_files: Callable[..., list[Path]], name: str, content: bytes | None, message: str
) -> None:
    add_files("z")
    path = config.output_dir / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises((PipelineError, DatasetError), match=message):
        run(config, append=True)
    assert read_manifest(config.output_dir).version == 1


def test_another_tokenizer_at_the_path_is_refused(
    config: PipelineConfig, tmp_path: Path, make_config: MakeConfig, add_files: Callable[..., list[Path]]
) -> None:
    add_files("z")
    path = config.tokenizer.path
    assert path is not None
    content = path.read_bytes()
    try:
        path.write_bytes(content.replace(b'"version": "1.0"', b'"version":  "1.0"'))
        with pytest.raises(PipelineError, match=r"tokenizer.json is not what made version 1 of .*; restore it$"):
            run(config, append=True)
    finally:
        path.write_bytes(content)


def test_an_append_stopped_at_any_write_leaves_a_version_and_goes_on(
    config: PipelineConfig,
    tmp_path: Path,
    make_config: MakeConfig,
    add_files: Callable[..., list[Path]],
    stop_before_renames: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = read_manifest(config.output_dir)
    shutil.copytree(config.output_dir, tmp_path / "whole")
    add_files("z")
    run(make_config(output_dir=tmp_path / "whole", **SMALL_UNITS), append=True)
    # the tokenizer lent (at the first attempt), then the units, two reports, info and state of two splits,
    # the tokenizer, the config, and the manifest: ten; the last attempt gets as far as the tidying up
    for done in range(11):
        with monkeypatch.context() as patch:
            stop_before_renames(patch, after=done, without=("units", "plan.json", ".work/config.json", "status.json"))
            patch.setattr("pipeline.run.Workspace.remove", stop if done == 10 else keep)
            with pytest.raises(KeyboardInterrupt):
                run(config, append=True)
        assert verify_dataset(config.output_dir, threads=1) == []
        if done < 10:
            assert read_manifest(config.output_dir) == old
            with pytest.raises(PipelineError, match=r"a run --append to .* was interrupted; run it again with"):
                run(config)
    assert read_manifest(config.output_dir).version == 2
    assert run(config, append=True).was_finished
    assert files_of(config.output_dir) == files_of(tmp_path / "whole")


def test_an_interrupted_append_can_be_taken_back(
    config: PipelineConfig, add_files: Callable[..., list[Path]], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_files("z")
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config, append=True)
    add_files("y")
    expected = (
        r"the input has changed since the run in .* began: .*y.jsonl is new; restore it, or remove .*dataset/.work"
    )
    with pytest.raises(PipelineError, match=expected + " to leave the finished dataset as it is$"):
        run(config, append=True)
    shutil.rmtree(config.output_dir / ".work")
    assert verify_dataset(config.output_dir, threads=1) != []  # shards that nobody needs
    (config.output_dir / "data-notes.arrow").touch()  # not ours to remove
    assert run(config).manifest.version == 1
    (problem,) = verify_dataset(config.output_dir, threads=1)
    assert problem == "data-notes.arrow: not in the manifest; remove it"
    (config.output_dir / "data-notes.arrow").unlink()
    assert run(config, append=True).manifest.documents == 180
    assert verify_dataset(config.output_dir, threads=1) == []


def test_shards_of_an_append_that_was_taken_back_go_with_the_next_append(
    config: PipelineConfig, add_files: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = add_files("z")
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config, append=True)
    shutil.rmtree(config.output_dir / ".work")
    file.unlink()
    assert run(config, append=True).was_finished  # there is nothing to add
    assert verify_dataset(config.output_dir, threads=1) == []


def test_a_killed_append_leaves_the_old_version_and_goes_on(
    config: PipelineConfig,
    tmp_path: Path,
    make_config: MakeConfig,
    make_texts: MakeTexts,
    make_jsonl: MakeJsonl,
    corpus: Path,
) -> None:
    old = read_manifest(config.output_dir)
    shutil.copytree(config.output_dir, tmp_path / "whole")
    make_jsonl(corpus / "z.jsonl", make_texts(150, seed=5, words=400))  # 50 units
    config_file = tmp_path / "config.yaml"
    config_file.write_text(dump(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", str(config_file), "--append"],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while len(list(config.output_dir.glob(".work/units/*.json"))) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert read_manifest(config.output_dir) == old
    assert verify_dataset(config.output_dir, threads=1) == []
    run(config, append=True)
    run(make_config(output_dir=tmp_path / "whole", **SMALL_UNITS), append=True)
    assert files_of(config.output_dir) == files_of(tmp_path / "whole")


def test_a_full_disk_leaves_the_old_version_and_goes_on(
    tmp_path: Path,
    corpus: Path,
    make_config: MakeConfig,
    make_texts: MakeTexts,
    make_jsonl: MakeJsonl,
    mount_tmpfs: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = mount_tmpfs("size=500k")
    config = make_config(output_dir=folder / "dataset")
    old = run(config).manifest
    config_file = tmp_path / "config.yaml"
    config_file.write_text(dump(config))
    make_jsonl(corpus / "z.jsonl", make_texts(3000, seed=5, words=400))
    assert main(["run", str(config_file), "--append"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"smollm2 pipeline: {folder}/dataset/")
    assert last.endswith(": no space left on the disk; free some and run the same command to go on")
    assert read_manifest(config.output_dir) == old
    assert verify_dataset(config.output_dir, threads=1) == []
    mount_tmpfs("remount,size=20m")
    assert main(["run", str(config_file), "--append"]) == 0
    assert read_manifest(config.output_dir).documents == 3120
    assert verify_dataset(config.output_dir, threads=1) == []


def test_a_deduplicated_dataset_is_not_appended_to(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config(deduplication={"exact": {}}, **SMALL_UNITS)
    run(config)
    with pytest.raises(PipelineError, match="with deduplication, make a new dataset of all files"):
        run(config, append=True)


def test_a_file_name_need_not_be_utf8(tmp_path: Path, make_config: MakeConfig) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = {b"abc\xe9.txt": b"one text", b"bad\xe9.txt": b"\xff"}  # the second is an example in the reports
    for name, content in texts.items():
        (folder / os.fsdecode(name)).write_bytes(content)
    config = make_config(
        run_dir=tmp_path / "run",
        sources=[{"name": "corpus", "type": "text", "files": [f"{folder}/*.txt"]}],
        validation_fraction=0,
        max_bad_record_fraction=1,
        **SMALL_UNITS,
    )
    config_file = tmp_path / "config.yaml"
    config_file.write_text(dump(config))
    assert main(["run", str(config_file)]) == 0
    (folder / os.fsdecode(b"new\xe9.txt")).write_bytes(b"another text")
    assert main(["run", str(config_file), "--append"]) == 0
    manifest = read_manifest(config.output_dir)
    assert (manifest.version, manifest.documents_in, manifest.documents) == (2, 3, 2)
    lines = (config.output_dir / "units.jsonl").read_text().splitlines()
    pieces = [piece["path"] for line in lines for piece in json.loads(line)["unit"]["pieces"]]
    assert [os.fsencode(Path(path).name) for path in pieces] == [*texts, b"new\xe9.txt"]
    assert verify_dataset(config.output_dir, threads=1) == []
    assert "bad\\\\xe9.txt" in (config.output_dir / "report.json").read_text()
    (folder / os.fsdecode(b"bad\xe9.txt")).unlink()
    with pytest.raises(PipelineError, match=r"but of those: .*/bad\udce9.txt is gone; restore them"):
        run(config, append=True)
