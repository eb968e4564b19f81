"""`smollm2 launch`: a mistake is found before any rank starts, and said in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint.events import EventWriter, events_file, read_events
from checkpoint.manifest import CheckpointManifest, describe_files, partial_directory, publish_checkpoint
from checkpoint.run_record import RunRecord, read_run, write_run
from configs.load import dump, load
from launch import cli
from launch.cli import build_parser, main
from launch.config import LauncherConfig, TrainConfig
from launch.data.object_store import StoreUnreachableError
from launch.trainer.inputs import read_inputs
from launch.trainer.lock import hold_lock
from launch.trainer.rewinds import Rewind, batch_number, write_rewinds


@pytest.fixture(autouse=True)
def no_rank_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> int:
        raise AssertionError("the launcher was started")

    monkeypatch.setattr("launch.cluster.process.start_training", refuse)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.sources.0.path=nowhere"], "dataset nowhere does not exist; make it with `smollm2 pipeline run`"),
        (["launcher.ranks_per_node=3"], "batch_tokens=1024 is not a multiple of"),
        (["data.sequence_length=128"], "data.sequence_length=128 is longer than model.max_position_embeddings=64"),
        (["model.vocab_size=100"], "model.vocab_size=100 is smaller than the tokenizer's 256"),
        (["learning_rate=1"], "unknown key learning_rate; did you mean optimizer.learning_rate?"),
        (["stepps=3"], "unknown key stepps; did you mean steps?"),
        (["optimizer.learning_rate=-1"], "optimizer.learning_rate=-1"),
    ],
)
def test_mistake_is_one_line(config: Path, overrides: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config), *overrides]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert line in shown.err


def test_store_that_does_not_answer_is_one_line_and_no_mistake(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: TrainConfig) -> None:
        raise StoreUnreachableError("s3://data/x cannot be read (TimeoutError: ); check the network")

    monkeypatch.setattr(cli, "read_inputs", fail)
    assert main(["train", str(config)]) == 1
    assert capsys.readouterr().err == (
        "smollm2 launch: s3://data/x cannot be read (TimeoutError: ); check the network\n"
    )


def test_unwritable_run_folder_is_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config), f"run_dir={config}/run"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot be written" in line
    assert "choose a folder that this user may write to" in line


def test_changed_run_is_refused_before_ranks_start(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = config.parent / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config.read_text())
    save(run, 10)
    assert main(["train", str(config), "seed=1", "batch_tokens=2048"]) == 2
    assert [line.split(": ")[1].split("=")[0] for line in capsys.readouterr().err.splitlines()] == [
        "batch_tokens",
        "seed",
    ]


def save(run: Path, step: int, content: bytes = b"weights") -> Path:
    partial = partial_directory(run, step)
    partial.mkdir(parents=True)
    (partial / "weights").write_bytes(content)
    manifest = CheckpointManifest(
        run_key="key",
        step=step,
        tokens_consumed=0,
        samples_consumed=0,
        world_size=2,
        zero_stage=3,
        dtype="float32",
        config_digest="",
        dataset_digests={},
        tokenizer_digest="",
        model={},
        files=tuple(describe_files(partial, [partial / "weights"])),
    )
    return publish_checkpoint(run, manifest)


def test_second_start_beside_a_trainer_at_work_is_refused_at_once(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config.parent / "run"
    run.mkdir()
    monkeypatch.setattr("launch.trainer.lock.has_launcher", lambda pid: pid == os.getpid())
    descriptor = hold_lock(run)
    try:
        assert main(["train", str(config)]) == 2
    finally:
        os.close(descriptor)
    [line] = capsys.readouterr().err.splitlines()
    assert f"another trainer (pid {os.getpid()} on " in line


def test_finished_run_says_so_and_is_no_failure(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = config.parent / "run"
    save(run, 20)
    # a kill after the last checkpoint leaves the log at "running"
    with EventWriter(events_file(run)) as events:
        events.write("state", step=0, state="running")
    assert main(["train", str(config)]) == 0
    assert capsys.readouterr().out == f"run {run} has finished: 20 of 20 steps; raise steps to go on\n"
    told = [event.fields.get("state", event.kind) for event, _ in read_events(events_file(run))]
    assert told == ["running", "checkpoint", "finished"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What the launcher was started with; it ends with 143."""
    calls: list[tuple[object, ...]] = []

    def start(*arguments: object, run_dir: Path) -> int:
        calls.append((*arguments, run_dir))
        return 143

    monkeypatch.setattr("launch.cluster.process.start_training", start)
    return calls


def test_checkpoint_of_an_unfinished_run_is_not_hashed_before_the_ranks_do(
    config: Path, started: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(config.parent / "run", 10)
    monkeypatch.setattr("hashlib.file_digest", lambda *arguments: pytest.fail("a file was hashed"))
    # the tokenizer of the datasets is not compared here, as data.tokenizer is not set
    assert main(["train", str(config)]) == 143
    assert len(started) == 1


def test_damaged_last_checkpoint_is_no_finished_run(config: Path, started: list[tuple[object, ...]]) -> None:
    (save(config.parent / "run", 20) / "weights").write_bytes(b"spoiled")
    assert main(["train", str(config)]) == 143
    assert len(started) == 1


def test_a_right_config_starts_the_launcher_with_what_was_typed(
    config: Path, started: list[tuple[object, ...]]
) -> None:
    assert main(["train", str(config), "steps=30", "launcher.master_port=1234"]) == 143
    assert started == [
        (
            config,
            ["steps=30", "launcher.master_port=1234"],
            LauncherConfig(ranks_per_node=2, master_port=1234),
            config.parent / "run",
        )
    ]


def test_a_change_of_data_that_is_meant_is_an_override_for_the_ranks(
    config: Path, started: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = config.parent / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config.read_text())
    save(run, 10)
    changed = "data.sources.0.weight=2"
    assert main(["train", str(config), changed]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "data.sources.0.weight=2.0 but this run was started with 1.0; set it back" in line
    assert line.endswith("or start with --allow-change data if it is meant")
    assert main(["train", str(config), changed, "--allow-change", "data"]) == 143
    assert [call[1] for call in started] == [[changed, "allow_change=data"]]


@pytest.fixture
def traced(config: Path) -> Path:
    """The folder of a run as its start leaves it."""
    run = config.parent / "run"
    run.mkdir()
    loaded = load(config, TrainConfig)
    (run / "config.yaml").write_text(dump(loaded))
    digests = read_inputs(loaded).dataset_digests
    record = RunRecord(run_key="k", name="n", created_ms=1, code_revision="c", versions={}, dataset_digests=digests)
    write_run(run, record)
    return run


def test_trace_lists_the_documents_of_a_step(traced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(traced), "--step", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], len(told["samples"])) == (3, 16)
    assert [sample["index"] for sample in told["samples"]] == list(range(32, 48))
    for sample in told["samples"]:
        # documents of 99 ids and their end
        first, last = sample["sample"] * 64 // 100, (sample["sample"] * 64 + 64) // 100
        assert [span["document_id"] for span in sample["documents"]] == [
            f"train-0-{row}" for row in range(first, last + 1)
        ]
        assert sum(span["stop"] - span["start"] for span in sample["documents"]) == 65
    assert main(["trace", str(traced), "--step", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 3: 16 samples of 64 tokens"
    assert lines[1].startswith("sample 32: chain, epoch 0, sample ")
    assert lines[2].startswith("  data-00000-000.arrow  train-0-")


@pytest.mark.parametrize("rewinds", [(), (Rewind(9, 5, 4), Rewind(13, 12, 2))], ids=["straight", "rewound"])
def test_trace_finds_the_steps_of_a_document(
    traced: Path, rewinds: tuple[Rewind, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    write_rewinds(traced, rewinds)
    main(["trace", str(traced), "--step", "13", "--json"])
    first = json.loads(capsys.readouterr().out)["samples"][0]["index"]
    assert first == (batch_number(13, rewinds) - 1) * 16
    seen = set()
    for step in range(1, 21):
        main(["trace", str(traced), "--step", str(step), "--json"])
        told = json.loads(capsys.readouterr().out)
        if any(span["document_id"] == "train-0-7" for sample in told["samples"] for span in sample["documents"]):
            seen.add(step)
    assert main(["trace", str(traced), "--document", "train-0-7"]) == 0
    assert capsys.readouterr().out == f"train-0-7 is seen in step {', '.join(map(str, sorted(seen)))}\n"


def test_trace_of_a_step_before_a_change_is_that_of_then(
    traced: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["trace", str(traced), "--step", "3", "--json"])
    before = capsys.readouterr().out
    folder = traced / "data_history" / "until-step-00000003"
    folder.mkdir(parents=True)
    for name in ("config.yaml", "run.json"):
        (folder / name).write_text((traced / name).read_text())
    changed = load(config, TrainConfig, ["data.sources.0.name=renamed"])
    (traced / "config.yaml").write_text(dump(changed))
    record = read_run(traced)
    write_run(traced, record.model_copy(update={"dataset_digests": read_inputs(changed).dataset_digests}))
    main(["trace", str(traced), "--step", "3", "--json"])
    assert capsys.readouterr().out == before
    main(["trace", str(traced), "--step", "4", "--json"])
    assert {sample["source"] for sample in json.loads(capsys.readouterr().out)["samples"]} == {"renamed"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "0"], "--step 0: the run has steps 1 to 20; name one of them"),
        (["--step", "21"], "--step 21: the run has steps 1 to 20"),
        (["--document", "nobody"], "--document nobody: no dataset of the run has it in its training split"),
    ],
)
def test_what_cannot_be_traced_is_one_line(
    traced: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", str(traced), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_trace_refuses_datasets_of_other_contents(
    traced: Path, config: Path, make_dataset: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(config.parent / "data", [[5] * 99] * 40, validation=[[5] * 99] * 40)
    assert main(["trace", str(traced), "--step", "3"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "dataset chain has other contents (sha256:" in line
    assert line.endswith(f"); put the old one back at {config.parent}/data")


def test_trace_of_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(tmp_path), "--step", "3"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "is not a run folder (no run.json)" in line


@pytest.mark.parametrize("verb", [[], ["train"], ["trace"], ["generate"]])
def test_help_has_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args([*verb, "--help"])
    assert stopped.value.code == 0
    assert "example: smollm2 launch" in capsys.readouterr().out
