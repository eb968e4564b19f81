"""What a data run tells in its event log, and that it goes on without telling."""

from __future__ import annotations

import ast
import dataclasses
import errno
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from checkpoint.events import Event, EventWriter, events_file, read_events
from checkpoint.run_record import read_run
from pipeline import run as run_module
from pipeline import run_events, run_folder, shuffled_run
from pipeline.array_job import RunShard, commit, run_shard
from pipeline.config import PipelineConfig
from pipeline.document import PipelineError
from pipeline.run import run
from pipeline.run_events import RunEvents, parameters
from pipeline.shards.format import digest_file, read_manifest
from pipeline.throughput import Snapshot

MakeConfig = Callable[..., PipelineConfig]
MakeTexts = Callable[..., list[str]]
MakeJsonl = Callable[[Path, Sequence[str]], Path]
ROOT = Path(__file__).resolve().parents[2]
# of the checkpoint room, what the pipeline loads
CONTRACTS = ("events", "run_record", "records")


@pytest.fixture
def told(tmp_path: Path, corpus: Path, make_config: MakeConfig) -> PipelineConfig:
    """Ten units, done in this process, told in `tmp_path/run`."""
    return make_config(unit_size_bytes=3000, executor="serial", run_dir=tmp_path / "run")


def events_of(config: PipelineConfig) -> list[Event]:
    assert config.run_dir is not None
    return [event for event, _ in read_events(events_file(config.run_dir))]


def states_of(config: PipelineConfig) -> list[Any]:
    return [event.fields["state"] for event in events_of(config) if event.kind == "state"]


def metrics_of(config: PipelineConfig, prefix: str) -> list[tuple[int, dict[str, float]]]:
    """Step and values of each event whose metrics have that prefix."""
    found = [event for event in events_of(config) if event.kind == "metrics"]
    return [(event.step, dict(event.fields)) for event in found if any(key.startswith(prefix) for key in event.fields)]


def snapshot(*, input_bytes_done: int) -> Snapshot:
    zeros = {field.name: 0 for field in dataclasses.fields(Snapshot)}
    return Snapshot(**(zeros | {"input_bytes_done": input_bytes_done, "workers": ()}))  # type: ignore[arg-type]


def digests(dataset: Path) -> dict[str, str]:
    shards = {path.relative_to(dataset).as_posix(): digest_file(path) for path in dataset.rglob("*.arrow")}
    return shards | {name: digest_file(dataset / name) for name in ("manifest.json", "config.json")}


def test_a_run_tells_its_state_its_config_and_what_it_made(told: PipelineConfig) -> None:
    manifest = run(told).manifest
    events = events_of(told)
    assert [event.kind for event in events] == ["state", "params", "metrics", "dataset", "metrics", "state"]
    assert states_of(told) == ["running", "finished"]
    ((version, made),) = metrics_of(told, "dataset/")
    assert (version, made["dataset/tokens"], made["dataset/documents_in"]) == (1, manifest.tokens, 120)
    assert made["dataset/bytes_per_token"] == manifest.text_bytes_kept / manifest.tokens
    assert events[3].fields["digest"] == manifest.digest()


def test_the_last_progress_is_all_of_the_input(told: PipelineConfig, corpus: Path) -> None:
    run(told)
    size_bytes = sum(path.stat().st_size for path in corpus.iterdir())
    ((step, last),) = metrics_of(told, "progress/")
    assert (step, last["progress/input_bytes"], last["progress/input_fraction"]) == (size_bytes, size_bytes, 1.0)
    assert (last["progress/documents_in"], last["progress/kept_fraction"]) == (120, 1.0)


def test_steps_do_not_fall_back_where_work_is_done_again(told: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_events, "METRICS_INTERVAL_S", 0.0)
    with RunEvents(told) as events:
        events.begin(goes_on=False)
        for done in (100, 40, 90, 120):
            events.tell_progress(snapshot(input_bytes_done=done))
    told_at = [(step, values["progress/input_bytes"]) for step, values in metrics_of(told, "progress/")]
    assert told_at[:4] == [(100, 100), (100, 40), (100, 90), (120, 120)]


def test_progress_is_told_at_its_interval(told: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.status.STATUS_INTERVAL_S", 0.0)
    monkeypatch.setattr(run_events, "METRICS_INTERVAL_S", 0.0)
    run(told)
    steps = [step for step, _ in metrics_of(told, "progress/")]
    assert len(set(steps)) > 5
    assert steps == sorted(steps)


def test_the_folder_is_a_data_run_with_config_and_artifacts(told: PipelineConfig) -> None:
    manifest = run(told).manifest
    assert told.run_dir is not None
    record = read_run(told.run_dir)
    assert (record.kind, record.name, record.dataset) == ("data", "test", str(told.output_dir))
    assert "unit_size_bytes: 3000\n" in (told.run_dir / "config.yaml").read_text()
    names = {path.name for path in (told.run_dir / "artifacts").iterdir()}
    assert names == {"report.json", "report.html", "manifest.json"}
    assert read_manifest(told.run_dir / "artifacts").digest() == manifest.digest()


def test_paragraphs_and_duplicates_are_counted(
    tmp_path: Path, make_config: MakeConfig, make_jsonl: MakeJsonl, make_texts: MakeTexts
) -> None:
    first, *texts = make_texts(30, seed=1)
    line = "a line that stands in two documents of this corpus, word for word, as menus do"
    make_jsonl(tmp_path / "corpus" / "a.jsonl", [*texts, first, first, f"{line}\none", f"{line}\ntwo"])
    config = make_config(
        executor="serial",
        run_dir=tmp_path / "run",
        deduplication={"exact": {}, "paragraphs": {"min_characters": 40}},
    )
    run(config)
    ((_, made),) = metrics_of(config, "dataset/")
    assert (made["dataset/dropped/exact_duplicate"], made["dataset/paragraphs_removed"]) == (1, 1)


def test_bytes_are_those_of_a_run_that_tells_nothing(told: PipelineConfig, tmp_path: Path) -> None:
    run(told)
    run(told.model_copy(update={"run_dir": None, "output_dir": tmp_path / "untold"}))
    assert digests(told.output_dir) == digests(tmp_path / "untold")


def test_a_failed_run_tells_its_reason_and_shows_its_report(
    told: PipelineConfig, corpus: Path, make_texts: MakeTexts
) -> None:
    (corpus / "0.jsonl").write_text("{\n" * 10 + json.dumps({"text": make_texts(1, seed=1)[0]}) + "\n")
    with pytest.raises(PipelineError, match="records read are bad"):
        run(told)
    last = events_of(told)[-1].fields
    assert last["state"] == "failed"
    assert "records read are bad" in last["reason"]
    assert told.run_dir is not None
    assert {path.name for path in (told.run_dir / "artifacts").iterdir()} == {"report.json", "report.html"}


@pytest.mark.parametrize("way", ["append", "shuffle"])
def test_a_report_that_lies_elsewhere_until_the_run_is_done_is_shown_as_well(
    told: PipelineConfig, corpus: Path, make_texts: MakeTexts, way: str
) -> None:
    assert told.run_dir is not None
    if way == "append":
        run(told.model_copy(update={"run_dir": None}))
    else:
        told = told.model_copy(update={"shuffle_seed": 3})
    (corpus / "9.jsonl").write_text("{\n" * 10 + json.dumps({"text": make_texts(1, seed=1)[0]}) + "\n")
    with pytest.raises(PipelineError, match="records read are bad"):
        run(told, append=way == "append")
    assert {path.name for path in (told.run_dir / "artifacts").iterdir()} == {"report.json", "report.html"}
    report = json.loads((told.run_dir / "artifacts" / "report.json").read_bytes())
    assert report["dropped"]["malformed_json"]["documents"] == 10


def test_an_interrupted_run_is_killed_and_goes_on_as_the_same(
    told: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(told)
    assert told.run_dir is not None
    key = read_run(told.run_dir).run_key
    monkeypatch.undo()
    run(told)
    assert states_of(told) == ["running", "killed", "running", "finished"]
    assert events_of(told)[3].fields == {"state": "killed", "reason": "stopped by SIGINT"}
    assert read_run(told.run_dir).run_key == key
    assert metrics_of(told, "progress/")[-1][1]["progress/tokens"] == read_manifest(told.output_dir).tokens


def test_a_finished_run_is_told_once(told: PipelineConfig) -> None:
    run(told)
    before = events_of(told)
    assert run(told).was_finished
    assert events_of(told) == before


def test_a_run_killed_before_its_last_word_has_it_told_by_the_next(told: PipelineConfig) -> None:
    run(told)
    assert told.run_dir is not None
    log = events_file(told.run_dir)
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    assert run(told).was_finished
    assert states_of(told) == ["running", "running", "finished"]
    ((_, made),) = metrics_of(told, "dataset/")
    assert "dataset/seconds" not in made


def test_a_finished_dataset_can_be_told_afterwards(told: PipelineConfig) -> None:
    run(told.model_copy(update={"run_dir": None}))
    run(told)
    assert states_of(told) == ["running", "finished"]


def test_an_append_is_told_in_the_same_run_as_the_next_version(
    told: PipelineConfig, corpus: Path, make_texts: MakeTexts, make_jsonl: MakeJsonl
) -> None:
    first = run(told).manifest
    make_jsonl(corpus / "9.jsonl", make_texts(20, seed=9))
    second = run(told, append=True).manifest
    tokens = [(version, made["dataset/tokens"]) for version, made in metrics_of(told, "dataset/")]
    assert tokens == [(1, first.tokens), (2, second.tokens)]
    (one, _), (two, last) = metrics_of(told, "progress/")
    assert two - one == (corpus / "9.jsonl").stat().st_size
    assert (last["progress/tokens"], last["progress/documents_in"]) == (second.tokens, 140)


def test_a_shuffled_run_is_one_attempt_from_the_first_unit_to_the_shuffle(told: PipelineConfig) -> None:
    manifest = run(told.model_copy(update={"shuffle_seed": 3})).manifest
    assert states_of(told) == ["running", "finished"]
    (dataset,) = (event.fields for event in events_of(told) if event.kind == "dataset")
    assert (dataset["path"], dataset["digest"]) == (str(told.output_dir), manifest.digest())
    assert len(metrics_of(told, "progress/")) == 1


def test_a_run_that_has_only_its_shuffle_left_is_running(told: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shuffled_run, "_shuffle", interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(told.model_copy(update={"shuffle_seed": 3}))
    assert states_of(told) == ["running", "killed", "running", "killed"]


def test_shards_of_a_job_tell_nothing_and_the_commit_all(told: PipelineConfig) -> None:
    assert told.run_dir is not None
    for index in range(2):
        run_shard(told, RunShard(index, 2))
    assert not told.run_dir.exists()
    manifest = commit(told).manifest
    assert states_of(told) == ["running", "finished"]
    assert metrics_of(told, "dataset/")[0][1]["dataset/tokens"] == manifest.tokens


def test_a_refused_start_leaves_no_word(told: PipelineConfig) -> None:
    run(told)
    before = events_of(told)
    with pytest.raises(PipelineError, match="was made with another config"):
        run(told.model_copy(update={"validation_fraction": 0.5}))
    assert events_of(told) == before


def test_a_log_that_cannot_be_written_stops_nothing_and_is_said_once(
    told: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EventWriter, "write", fill)
    monkeypatch.setattr(run_folder, "write_durably", fill)
    with caplog.at_level(logging.WARNING):
        manifest = run(told).manifest
    assert caplog.messages == [
        f"run_dir={told.run_dir} cannot be written (No space left on device); the run goes on, and what it tells there "
        "may be incomplete"
    ]
    monkeypatch.undo()
    untold = told.model_copy(update={"output_dir": tmp_path / "untold", "run_dir": None})
    assert manifest.digest() == run(untold).manifest.digest()


def test_a_full_disk_of_the_run_folder_stops_nothing_and_the_next_start_tells_the_rest(
    told: PipelineConfig, mount_tmpfs: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = mount_tmpfs("size=64k")
    config = told.model_copy(update={"run_dir": disk / "run"})
    (disk / "run" / "events").mkdir(parents=True)
    (disk / "filling").write_bytes(bytes(56 << 10))
    manifest = run(config).manifest
    assert f"run_dir={disk}/run cannot be written (No space left on device)" in caplog.text
    mount_tmpfs("remount,size=4m")
    assert run(config).was_finished
    assert states_of(config)[-1] == "finished"
    assert [event.fields["digest"] for event in events_of(config) if event.kind == "dataset"][-1] == manifest.digest()


def test_a_folder_that_cannot_be_made_stops_nothing(
    told: PipelineConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        run(told.model_copy(update={"run_dir": tmp_path / "file" / "run"}))
    assert [message.partition(";")[0] for message in caplog.messages] == [
        f"run_dir={tmp_path}/file/run cannot be written (Not a directory)"
    ]


def test_params_are_flat_and_lists_of_plain_values_one_each(told: PipelineConfig, corpus: Path) -> None:
    params = parameters(told.model_copy(update={"run_dir": None}))
    assert params["sources.0.name"] == "corpus"
    assert params["sources.0.files"] == json.dumps([f"{corpus}/*.jsonl"])
    assert (params["unit_size_bytes"], params["run_dir"]) == (3000, "None")


def test_the_pipeline_never_imports_mlflow() -> None:
    imported = set()
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "checkpoint" / f"{name}.py" for name in CONTRACTS)]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported.update(name.name.partition(".")[0] for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                imported.add(node.module.partition(".")[0])
    assert {"pyarrow", "pipeline"} < imported
    assert "mlflow" not in imported
