"""What stands beside the shards is that of the manifest's version: at every moment of an append, and when it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline import assembly, next_version
from pipeline.config import PipelineConfig
from pipeline.document import PipelineError
from pipeline.run import run
from pipeline.shards.format import read_manifest

MakeConfig = Callable[..., PipelineConfig]
MakeJsonl = Callable[[Path, Sequence[str]], Path]


def stop(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def files_of(dataset: Path) -> dict[str, bytes]:
    """All that belongs to a version, reports too."""
    return {
        path.relative_to(dataset).as_posix(): path.read_bytes()
        for path in sorted(dataset.rglob("*"))
        if path.is_file() and ".work" not in path.parts and path.name not in ("status.json", ".lock", "units.jsonl")
    }


def shards_that_hugging_face_reads(dataset: Path) -> list[str]:
    return [file["filename"] for file in json.loads((dataset / "state.json").read_bytes())["_data_files"]]


def write_bad(path: Path, *, good: int, bad: int) -> None:
    path.write_text('{"text": "the shard"}\n' * good + "{\n" * bad)


@pytest.fixture
def dataset_of_400(tmp_path: Path, make_config: MakeConfig) -> PipelineConfig:
    """Finished, of 400 good records; one of a hundred may be bad."""
    (tmp_path / "corpus").mkdir()
    write_bad(tmp_path / "corpus" / "a.jsonl", good=400, bad=0)
    config = make_config(max_bad_record_fraction=0.01, validation_fraction=0)
    run(config)
    return config


def test_the_limit_is_that_of_all_records_as_of_a_run_of_all_files(
    dataset_of_400: PipelineConfig, tmp_path: Path
) -> None:
    write_bad(tmp_path / "corpus" / "b.jsonl", good=9, bad=1)
    manifest = run(dataset_of_400, append=True).manifest
    whole = run(dataset_of_400.model_copy(update={"output_dir": tmp_path / "whole"})).manifest
    assert (manifest.documents_in, manifest.dropped) == (410, whole.dropped)


def test_too_many_bad_records_leave_the_finished_version_and_its_report(
    dataset_of_400: PipelineConfig, tmp_path: Path
) -> None:
    dataset = dataset_of_400.output_dir
    before = files_of(dataset)
    new = tmp_path / "corpus" / "b.jsonl"
    write_bad(new, good=5, bad=5)
    expected = (
        rf"5 of 410 records read are bad .*; see {dataset}/.work/next/report.json, then raise the limit and run again, "
        rf"or mend the source or its config and remove {dataset}/.work to leave the finished dataset as it is$"
    )
    with pytest.raises(PipelineError, match=expected):
        run(dataset_of_400, append=True)
    report = json.loads((dataset / ".work" / "next" / "report.json").read_bytes())
    assert (report["documents_in"], report["documents_kept"]) == (410, 405)
    assert {name: files_of(dataset)[name] for name in before} == before
    # the way out, and back
    shutil.rmtree(dataset / ".work")
    new.unlink()
    assert run(dataset_of_400, append=True).manifest.version == 1
    write_bad(new, good=10, bad=0)
    assert run(dataset_of_400, append=True).manifest.documents_in == 410
    assert json.loads((dataset / "report.json").read_bytes())["documents_in"] == 410


@pytest.fixture
def stopped(
    corpus: Path,
    tmp_path: Path,
    make_config: MakeConfig,
    make_jsonl: MakeJsonl,
    make_texts: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[object, str], tuple[PipelineConfig, PipelineConfig, dict[str, bytes]]]:
    """`stopped(module, name)`: an append of a further source, killed when it calls that. Gives both configs, and the
    files of the version before."""

    def stop_at(module: object, name: str) -> tuple[PipelineConfig, PipelineConfig, dict[str, bytes]]:
        old = make_config()
        run(old)
        before = files_of(old.output_dir)
        make_jsonl(tmp_path / "more" / "m.jsonl", make_texts(30, seed=9))
        more = {"name": "more", "type": "jsonl", "files": [f"{tmp_path}/more/*.jsonl"]}
        new = make_config(sources=[old.sources[0].model_dump(), more])
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop)
            with pytest.raises(KeyboardInterrupt):
                run(new, append=True)
        return old, new, before

    return stop_at


Stopped = Callable[[object, str], tuple[PipelineConfig, PipelineConfig, dict[str, bytes]]]


def test_an_append_killed_before_its_manifest_is_taken_back_with_its_work(stopped: Stopped) -> None:
    old, _, before = stopped(assembly, "write_manifest")
    files = files_of(old.output_dir)
    assert {name: files[name] for name in before} == before
    shutil.rmtree(old.output_dir / ".work")
    assert run(old).was_finished


@pytest.mark.parametrize("append", [True, False])
@pytest.mark.parametrize("place", [(assembly, "take_next"), (next_version, "sync_directory")])
def test_an_append_killed_after_its_manifest_is_completed_by_any_run(
    stopped: Stopped, place: tuple[object, str], append: bool
) -> None:
    _, new, before = stopped(*place)
    dataset = new.output_dir
    assert read_manifest(dataset).version == 2
    result = run(new, append=append)
    assert (result.was_finished, result.manifest.version) == (True, 2)
    assert shards_that_hugging_face_reads(dataset) == [shard.path for shard in result.manifest.splits["train"].shards]
    assert json.loads((dataset / "report.json").read_bytes())["documents_in"] == 150
    assert files_of(dataset)["report.html"] != before["report.html"]
    assert not (dataset / ".work").exists()


def test_a_split_without_documents_has_no_folder_afterwards(dataset_of_400: PipelineConfig, tmp_path: Path) -> None:
    write_bad(tmp_path / "corpus" / "b.jsonl", good=9, bad=0)
    run(dataset_of_400, append=True)
    assert not (dataset_of_400.output_dir / "validation").exists()
