"""`smollm2 launch`: a mistake is found before any rank starts, and said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint.events import EventWriter, events_file, read_events
from checkpoint.manifest import CheckpointManifest, describe_files, partial_directory, publish_checkpoint
from launch.cli import build_parser, main
from launch.config import LauncherConfig


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


@pytest.mark.parametrize("verb", [[], ["train"], ["generate"]])
def test_help_has_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args([*verb, "--help"])
    assert stopped.value.code == 0
    assert "example: smollm2 launch" in capsys.readouterr().out
