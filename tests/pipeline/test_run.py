"""Whole runs in this process: sameness of the bytes, going on, and what a run refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from pipeline import assembly
from pipeline import run as run_module
from pipeline.config import PipelineConfig
from pipeline.document import PipelineError, SourceError
from pipeline.executors import WorkerError
from pipeline.plan import make_plan
from pipeline.run import run
from pipeline.shards.format import DatasetError, read_manifest
from pipeline.tokenizer.train import TokenizerError
from pipeline.workspace import Workspace, only_run

MakeConfig = Callable[..., PipelineConfig]
MakeJsonl = Callable[[Path, Sequence[str]], Path]


def digests(dataset: Path) -> dict[str, str]:
    """Of all that must not depend on how the run went: report and status tell its seconds, the lock its process."""
    return {
        file.relative_to(dataset).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(dataset.rglob("*"))
        if file.is_file() and file.name not in ("report.json", "report.html", "status.json", ".lock")
    }


def test_bytes_do_not_depend_on_the_number_of_workers(corpus: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    training = {"train": {"vocab_size": 300, "sample_bytes": 5000}}
    for workers in (1, 3):
        run(
            make_config(
                output_dir=tmp_path / f"of-{workers}",
                workers=workers,
                unit_size_bytes=3000,
                shard_size_bytes=1500,
                tokenizer=training,
            )
        )
    first = digests(tmp_path / "of-1")
    assert digests(tmp_path / "of-3") == first
    assert {"data-00000-000.arrow", "data-00000-001.arrow", "validation/data-00000-000.arrow"} < first.keys()


def test_shards_do_not_depend_on_the_engine(
    corpus: Path, tmp_path: Path, make_config: MakeConfig, tokenizer_file: Path
) -> None:
    shards = []
    for engine, workers in (("tokenizers", 1), ("splintr", 2), ("auto", 1)):
        config = make_config(
            output_dir=tmp_path / f"by-{engine}",
            workers=workers,
            unit_size_bytes=3000,
            tokenizer={"path": tokenizer_file, "engine": engine},
        )
        manifest = run(config).manifest
        report = json.loads((config.output_dir / "report.json").read_text())
        assert [record["engine"] for record in report["encoding"]] == [record.engine for record in manifest.encoding]
        assert manifest.encoding[0].engine.startswith("tokenizers " if engine == "tokenizers" else "splintr ")
        assert manifest.encoding[0].pieces == 120
        files = digests(config.output_dir)
        # the manifest and the units tell the engine's name
        shards.append({name: files[name] for name in files if name not in ("manifest.json", "units.jsonl")})
    assert shards[0] == shards[1] == shards[2]


def test_load_from_disk_gives_the_documents_of_each_split(corpus: Path, make_config: MakeConfig) -> None:
    datasets = pytest.importorskip("datasets")
    config = make_config(unit_size_bytes=3000)
    manifest = run(config).manifest
    train = datasets.load_from_disk(str(config.output_dir))
    validation = datasets.load_from_disk(str(config.output_dir / "validation"))
    assert len(train) == manifest.splits["train"].documents
    assert len(validation) == manifest.splits["validation"].documents
    assert train[0]["document_id"] == f"{corpus}/0.jsonl@0"
    assert sum(map(len, train["input_ids"])) == manifest.splits["train"].tokens
    assert train[0]["input_ids"][-1] == 0
    assert train.features["input_ids"].feature.dtype == "uint16"


def test_one_file_of_many_frames_is_done_by_many_units_and_gives_the_same_documents(
    tmp_path: Path, make_config: MakeConfig, make_texts: Callable[..., list[str]]
) -> None:
    content = "".join(json.dumps({"text": text}) + "\n" for text in make_texts(200, seed=3, words=200)).encode()
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "corpus").mkdir()
    frames = (compress(content[start : start + 9_999]) for start in range(0, len(content), 9_999))
    (tmp_path / "corpus" / "a.jsonl.zst").write_bytes(b"".join(frames))
    source = {"name": "corpus", "type": "jsonl", "files": [f"{tmp_path}/corpus/*"]}
    documents: list[list[dict[str, Any]]] = []
    for name, unit_size_bytes in (("one", None), ("many", 20_000)):
        config = make_config(
            sources=[source], output_dir=tmp_path / name, unit_size_bytes=unit_size_bytes, validation_fraction=0
        )
        shards = run(config).manifest.splits["train"].shards
        assert (len(shards) == 1) == (name == "one")
        streams = (pa.ipc.open_stream((config.output_dir / shard.path).read_bytes()) for shard in shards)
        documents.append([row for stream in streams for row in stream.read_all().to_pylist()])
    assert len(documents[0]) == 200
    assert documents[0] == documents[1]


def test_the_manifest_and_the_report_add_up(tmp_path: Path, make_config: MakeConfig, make_jsonl: MakeJsonl) -> None:
    make_jsonl(tmp_path / "corpus" / "a.jsonl", ["one", "two", "", "three"])
    make_jsonl(tmp_path / "more" / "b.jsonl", ["four", "five"])
    sources = [
        {"name": "a", "type": "jsonl", "files": [f"{tmp_path}/corpus/*.jsonl"]},
        {"name": "b", "type": "jsonl", "files": [f"{tmp_path}/more/*.jsonl"]},
    ]
    config = make_config(sources=sources, validation_fraction=0)
    manifest = run(config).manifest
    assert manifest == read_manifest(config.output_dir)
    assert (manifest.documents_in, manifest.splits["train"].documents) == (6, 5)
    assert manifest.text_bytes_kept == len("onetwothreefourfive")
    assert {reason: record.documents for reason, record in manifest.dropped.items()} == {"too_short": 1}
    report = json.loads((config.output_dir / "report.json").read_bytes())
    assert report["sources"]["a"]["dropped"]["too_short"]["documents"] == 1
    assert report["sources"]["b"]["documents_kept"] == 2
    assert report["tokens"]["train"] == manifest.splits["train"].tokens


def test_examples_of_what_was_dropped_come_from_every_unit(
    tmp_path: Path, make_config: MakeConfig, make_jsonl: MakeJsonl
) -> None:
    make_jsonl(tmp_path / "corpus" / "a.jsonl", [*["x"] * 300, "long enough to be kept"] * 2)
    filters = [{"type": "length", "min_characters": 10}]
    config = make_config(unit_size_bytes=3000, validation_fraction=0, filters=filters)
    run(config)
    dropped = json.loads((config.output_dir / "report.json").read_bytes())["sources"]["corpus"]["dropped"]["too_short"]
    offsets = [int(example["location"].rsplit("@", 1)[1]) for example in dropped["examples"]]
    assert dropped["documents"] == 600
    # three units, of which each shows its first 34
    assert len(make_plan(config).units) == 3
    assert len(offsets) == 100
    assert offsets[34] - offsets[33] > 1000
    assert offsets[68] - offsets[67] > 1000


def test_no_validation_makes_no_folder_for_it(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config(validation_fraction=0)
    assert run(config).manifest.splits["validation"].documents == 0
    assert sorted(path.name for path in config.output_dir.iterdir()) == [
        ".lock",
        "config.json",
        "data-00000-000.arrow",
        "dataset_info.json",
        "manifest.json",
        "report.html",
        "report.json",
        "state.json",
        "status.json",
        "tokenizer.json",
        "units.jsonl",
    ]


def test_a_finished_dataset_is_left_alone(
    corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    first = run(config)
    monkeypatch.setattr(run_module, "make_plan", None)  # would fail if it looked at the sources again
    # the remains of a run that was killed between its manifest and its tidying up
    (config.output_dir / ".work").mkdir()
    again = run(make_config(workers=5, max_bad_record_fraction=1))
    assert (again.was_finished, again.manifest) == (True, first.manifest)
    assert not (config.output_dir / ".work").exists()


def test_going_on_does_only_what_is_missing(
    corpus: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(unit_size_bytes=3000)
    run(config)
    whole = digests(config.output_dir)
    shutil.rmtree(config.output_dir)

    monkeypatch.setattr(run_module, "assemble", stop)
    with pytest.raises(RuntimeError, match="stop"):
        run(config)
    units = sorted((config.output_dir / ".work" / "units").iterdir())
    units[1].unlink()  # killed before its record was there
    (config.output_dir / "data-00002-000.arrow").unlink()  # somebody tidied up too much
    untouched = (config.output_dir / "data-00000-000.arrow").stat().st_mtime_ns
    monkeypatch.undo()
    run(config)
    assert digests(config.output_dir) == whole
    assert (config.output_dir / "data-00000-000.arrow").stat().st_mtime_ns == untouched


def stop(*arguments: object, **options: object) -> None:
    raise RuntimeError("stop")


@pytest.fixture
def stopped(corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> PipelineConfig:
    """A run that has done all its units and has no manifest."""
    config = make_config(unit_size_bytes=3000)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "assemble", stop)
        with pytest.raises(RuntimeError, match="stop"):
            run(config)
    return config


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_a_damaged_record_is_of_a_unit_that_is_not_done(
    stopped: PipelineConfig, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run(stopped.model_copy(update={"output_dir": tmp_path / "whole"}))
    record = stopped.output_dir / ".work" / "units" / "00001.json"
    record.write_bytes(content)
    run(stopped)
    assert f"{record} is damaged; its unit is done again" in caplog.messages
    assert digests(stopped.output_dir) == digests(tmp_path / "whole")


def test_the_advice_of_a_damaged_plan_helps(stopped: PipelineConfig) -> None:
    path = stopped.output_dir / ".work" / "plan.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PipelineError, match=rf"^{path}, .* is damaged; .*, remove that file and run the"):
        run(stopped)
    path.unlink()
    assert not run(stopped).was_finished


def test_a_damaged_config_of_an_unfinished_run_is_named(stopped: PipelineConfig) -> None:
    path = stopped.output_dir / ".work" / "config.json"
    path.write_bytes(b"{")
    expected = rf"^{path}, .* is missing or damaged; .* restore the file, or remove the folder to start over$"
    with pytest.raises(PipelineError, match=expected):
        run(stopped)
    shutil.rmtree(stopped.output_dir)
    assert not run(stopped).was_finished


@pytest.mark.parametrize("content", ["{}", "[]", '{"tokenizer": null}'])
def test_a_config_of_nothing_is_another_config(corpus: Path, make_config: MakeConfig, content: str) -> None:
    work = make_config().output_dir / ".work"
    work.mkdir(parents=True)
    (work / "config.json").write_text(content)
    (work / "tokenizer.json").touch()
    with pytest.raises(PipelineError, match=r"was made with another config .* remove the folder to start over$"):
        run(make_config())


def test_a_damaged_trained_tokenizer_is_named(
    corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tokenizer={"train": {"vocab_size": 290, "sample_bytes": 5000}})
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "assemble", stop)
        with pytest.raises(RuntimeError, match="stop"):
            run(config)
    path = config.output_dir / ".work" / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TokenizerError, match=rf"^{path} is damaged; remove {config.output_dir} to start over$"):
        run(config)


def test_the_advice_of_a_damaged_manifest_helps(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config()
    first = run(config).manifest
    path = config.output_dir / "manifest.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DatasetError, match=rf"again: rm -r {config.output_dir}, then"):
        run(config)
    shutil.rmtree(config.output_dir)
    assert run(config).manifest == first


def test_a_finished_dataset_is_known_without_its_config(corpus: Path, make_config: MakeConfig) -> None:
    run(make_config())
    (make_config().output_dir / "config.json").write_bytes(b"{")
    assert run(make_config()).was_finished
    with pytest.raises(PipelineError, match=r"config.json, which tells the config .* is missing or damaged; choose"):
        run(make_config(name="other"))


def test_going_on_with_changed_input_says_what_changed(stopped: PipelineConfig, corpus: Path) -> None:
    with (corpus / "1.jsonl").open("a") as file:
        file.write("\n")
    (corpus / "9.jsonl").write_text('{"text": "new"}\n')
    expected = (
        r"the input has changed since the run in .* began: .*1.jsonl has changed \(.*\); .*9.jsonl is new; restore"
    )
    with pytest.raises(PipelineError, match=expected):
        run(stopped)


def test_shards_that_only_another_node_sees_stop_the_run(
    corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workspace, "holds_shards_of", lambda workspace, record: False)
    expected = r"^unit 0 was done, but its shards are not in .*dataset: the nodes do not share it; choose"
    with pytest.raises(WorkerError, match=expected):
        run(make_config(executor="serial"))


def test_going_on_with_the_same_input_cut_otherwise_is_refused(
    stopped: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as a new version of a library or of ours may do; every unit's record is there, and would be taken by its index
    otherwise = make_plan(stopped.model_copy(update={"unit_size_bytes": 4000}))
    monkeypatch.setattr(run_module, "make_plan", lambda config: otherwise)
    expected = r"the plan differs from that which the run in .*dataset began with.* or remove .*dataset to start over$"
    with pytest.raises(PipelineError, match=expected):
        run(stopped)


def test_going_on_with_another_config_says_what_differs(stopped: PipelineConfig, make_config: MakeConfig) -> None:
    expected = (
        r"output_dir=.*dataset was made with another config \(validation_fraction: 0.2 → 0.1; "
        r"unit_size_bytes: 3000 → 4000\); choose another output_dir, restore the config, or remove the folder"
    )
    with pytest.raises(PipelineError, match=expected):
        run(make_config(unit_size_bytes=4000, validation_fraction=0.1))


def test_going_on_with_another_tokenizer_is_refused(
    stopped: PipelineConfig, make_config: MakeConfig, tmp_path: Path
) -> None:
    path = stopped.tokenizer.path
    assert path is not None
    content = path.read_bytes()
    try:
        path.write_bytes(content.replace(b'"version": "1.0"', b'"version":  "1.0"'))
        with pytest.raises(PipelineError, match=r"tokenizer.json has changed since the run in .* began; restore it"):
            run(stopped)
    finally:
        path.write_bytes(content)


def test_documents_that_got_lost_stop_the_manifest(stopped: PipelineConfig) -> None:
    path = stopped.output_dir / ".work" / "units" / "00001.json"
    record = json.loads(path.read_bytes())
    record["tally"]["documents_in"] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(
        PipelineError, match=r"unit 1 does not add up: \d+ documents in, \d+ kept, 0 dropped, \d+ written"
    ):
        run(stopped)
    assert not (stopped.output_dir / "manifest.json").exists()


def test_a_finished_dataset_of_another_config_says_what_differs(corpus: Path, make_config: MakeConfig) -> None:
    run(make_config())
    with pytest.raises(PipelineError, match=r"was made with another config \(name: \"test\" → \"other\"\)"):
        run(make_config(name="other"))


@pytest.mark.parametrize("tokenizer", [{}, {"tokenizer": {"train": {"vocab_size": 300}}}], ids=["given", "trained"])
def test_a_start_that_wrote_no_shard_does_not_hold_the_folder(
    corpus: Path, make_config: MakeConfig, tokenizer: dict[str, Any]
) -> None:
    source = {"name": "corpus", "type": "jsonl", "files": [str(corpus / "*.jsonl")]}
    with pytest.raises(PipelineError, match="missing_field"):
        run(make_config(sources=[source | {"text_field": "txt"}], **tokenizer))
    assert run(make_config(sources=[source], **tokenizer)).manifest.documents_in == 120


def test_the_advice_when_nothing_is_left_can_be_followed(corpus: Path, make_config: MakeConfig) -> None:
    with pytest.raises(PipelineError, match="nothing to train on"):
        run(make_config(filters=[{"type": "length", "min_characters": 10_000}], deduplication={"exact": {}}))
    # the passes of deduplication are not thrown away for a config of another name
    with pytest.raises(PipelineError, match="was made with another config"):
        run(make_config(name="typo", deduplication={"exact": {}}))


def test_what_a_killed_and_then_refused_start_left_is_let_go(
    corpus: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(PipelineError, match="nothing to train on"):
        run(make_config(filters=[{"type": "length", "min_characters": 10_000}]))
    partial = make_config().output_dir / ".data-00000-000.arrow.07503de9.partial"
    partial.touch()
    assert run(make_config()).manifest.documents_in == 120
    assert not partial.exists()
    assert any(line.endswith("left is removed; it had made no shard") for line in caplog.messages)


def test_a_status_that_was_being_written_does_not_block_the_folder(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config()
    config.output_dir.mkdir()
    (config.output_dir / ".status.json.07503de9.partial").touch()
    assert run(config).manifest.documents_in == 120


def test_a_missing_tokenizer_is_told_before_the_sources_are_listed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run_module, "make_plan", lambda config: pytest.fail("listed"))
    with pytest.raises(PipelineError, match=r"none\.json"):
        run(make_config(tokenizer={"path": tmp_path / "none.json"}))


def test_a_special_token_that_is_missing_is_told_before_the_first_unit(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.py").write_text("return 1\n")
    source = {"name": "code", "type": "source_tree", "root": str(tmp_path / "tree"), "special_tokens": True}
    monkeypatch.setattr("pipeline.sources.code_header.FILE_TOKEN", "<none>")
    monkeypatch.setattr(run_module, "EncodingPass", lambda *_, **__: pytest.fail("begun"))
    with pytest.raises(TokenizerError, match=r"has no token '<none>', which a source's special_tokens need"):
        run(make_config(sources=[source]))


def test_a_folder_of_other_files_is_refused(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config()
    config.output_dir.mkdir()
    (config.output_dir / "thesis.tex").touch()
    with pytest.raises(
        PipelineError, match=r"output_dir=.* holds other files \(thesis.tex\); choose a new or empty folder"
    ):
        run(config)


def test_a_second_pipeline_on_one_folder_is_refused(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config()
    expected = r"another pipeline \(pid \d+ on .+\) is writing .*dataset; wait for it, or choose another output_dir"
    with only_run(config.output_dir), pytest.raises(PipelineError, match=expected):
        run(config)


def test_an_empty_corpus_is_an_error(tmp_path: Path, make_config: MakeConfig, make_jsonl: MakeJsonl) -> None:
    make_jsonl(tmp_path / "corpus" / "a.jsonl", ["", "  "])
    with pytest.raises(
        PipelineError, match=r"nothing to train on: 2 documents in, dropped: 2 too_short, validation: 0"
    ):
        run(make_config())


def test_a_list_of_a_filter_that_is_missing_or_has_changed_stops_the_run(
    corpus: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    file = tmp_path / "words.txt"
    config = make_config(filters=[{"type": "banned_words", "path": str(file)}])
    with pytest.raises(PipelineError, match=r"words.txt: cannot be read: No such file"):
        run(config)
    file.write_text("unheard-of")
    run(config)
    file.write_text("other")
    with pytest.raises(PipelineError, match=r"was made with another config \(filter_files\..*words.txt: "):
        run(config)


def test_damage_found_by_a_worker_names_the_file(corpus: Path, make_config: MakeConfig) -> None:
    import gzip

    (corpus / "9.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 100)[:-9])
    config = make_config(sources=[{"name": "c", "type": "jsonl", "files": [f"{corpus}/*"]}])
    with pytest.raises(SourceError, match=r"9.jsonl.gz is damaged or truncated"):
        run(config)
    assert not list(config.output_dir.glob(".*partial"))


def test_a_vocabulary_that_the_text_cannot_fill_is_an_error(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config(tokenizer={"train": {"vocab_size": 60_000}})
    with pytest.raises(TokenizerError, match=r"tokenizer entries, wanted 60,000; give more text"):
        run(config)
    assert not (config.output_dir / "validation").exists()


def test_a_run_killed_at_any_step_of_the_end_is_finished_by_the_next(
    stopped: PipelineConfig,
    corpus: Path,
    tmp_path: Path,
    make_config: MakeConfig,
    stop_before_renames: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(make_config(unit_size_bytes=3000, output_dir=tmp_path / "whole"))
    # the units, two reports, info and state of two splits, tokenizer, config: nine files before the manifest
    for files in range(10):
        with monkeypatch.context() as patch:
            stop_before_renames(patch, after=files, without=(".work", "units", "status.json"))
            patch.setattr(assembly, "write_manifest", stop)
            with pytest.raises(KeyboardInterrupt if files < 9 else RuntimeError):
                run(stopped)
        assert not (stopped.output_dir / "manifest.json").exists()
    run(stopped)
    assert digests(stopped.output_dir) == digests(tmp_path / "whole")


def test_shards_have_their_names_for_good_before_a_manifest_names_them(
    stopped: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Path] = []

    def stop_at_manifest(dataset: Path, manifest: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(assembly, "sync_directory", done.append)
    monkeypatch.setattr(assembly, "write_manifest", stop_at_manifest)
    with pytest.raises(KeyboardInterrupt):
        run(stopped)
    assert done == [stopped.output_dir, stopped.output_dir / "validation"]


def test_a_full_disk_is_named_where_the_write_knew_only_a_descriptor(
    stopped: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(contents: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(assembly, "write_all_durably", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        run(stopped)
    assert caught.value.filename == str(stopped.output_dir)
