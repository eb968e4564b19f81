"""The room's command: what it prints, its exit codes, and one line for every mistake."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from checkpoint import export
from checkpoint.cli import build_parser, main
from checkpoint.manifest import checkpoint_directory, read_manifest
from checkpoint.prove import examine
from checkpoint.service import DATABASE_FILE, Service

RunMaker = Callable[..., Path]
Command = Callable[..., int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the room's command in this process; the result is its exit code."""
    monkeypatch.setattr(
        export, "prove_directory", lambda directory, checkpoint: examine(directory, read_manifest(checkpoint))
    )

    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["smollm2 checkpoint", *map(str, arguments)])
        return main()

    return run


def test_list_shows_each_checkpoint_and_its_proof(
    exported_run: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("list", exported_run) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["step", "2", "4"]
    assert lines[1][1:4] == ["256", "2", "float32"]
    assert [line[-1] for line in lines[1:]] == ["-", "passed"]


def test_list_names_a_spoilt_manifest_and_goes_on(
    make_run: RunMaker, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("float32")
    (checkpoint_directory(run, 2) / "manifest.json").write_text("{")
    assert command("list", run) == 0
    _, spoilt, sound = capsys.readouterr().out.splitlines()
    assert "is not a checkpoint manifest" in spoilt
    assert sound.split()[0] == "4"


def test_verify_of_a_sound_run_says_whole(
    make_run: RunMaker, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("verify", make_run("float32"), "--step", "all") == 0
    assert [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()] == [
        "step-00000002: whole",
        "step-00000004: whole",
    ]


def spoil(run: Path, kind: str) -> str:
    """Spoil step 4 and give the beginning of the line that must tell of it."""
    checkpoint = checkpoint_directory(run, 4)
    record = read_manifest(checkpoint).files[2]
    path = checkpoint / record.path
    if kind == "missing":
        path.unlink()
        return f"step-00000004: {record.path}: missing"
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[:-1])
        return f"step-00000004: {record.path}: {len(content) - 1:,} bytes, wanted {len(content):,}"
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return f"step-00000004: {record.path}: contents changed"


@pytest.mark.parametrize("kind", ["missing", "truncated", "flipped"])
def test_verify_names_the_bad_file_and_exits_1(
    make_run: RunMaker, command: Command, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run = make_run("float32")
    wanted = spoil(run, kind)
    assert command("verify", run) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(wanted)


def test_verify_refuses_a_manifest_that_leads_out_of_the_checkpoint(
    make_run: RunMaker, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("float32")
    path = checkpoint_directory(run, 4) / "manifest.json"
    path.write_text(path.read_text().replace('"path":"zero/', '"path":"../zero/', 1))
    assert command("verify", run) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "file path '../zero/" in line
    assert line.endswith("leads out of the checkpoint; do not trust it")


def test_export_and_prove_print_folder_and_difference(
    make_run: RunMaker, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("float32")
    for verb in ("export", "prove"):
        assert command(verb, run, "--step", "2") == 0
        folder, proof = capsys.readouterr().out.splitlines()
        assert folder == f"export  {run}/exports/step-00000002"
        assert proof.startswith("proof   passed: loss ")
        assert proof.endswith("(at most 0.01)")


def test_failed_proof_exits_1(exported_run: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    config = exported_run / "exports" / "step-00000004" / "config.json"
    config.write_text(config.read_text().replace("10000.0", "100000.0"))
    assert command("prove", exported_run) == 1
    assert "proof   failed: config.json: rope_theta is 100000.0" in capsys.readouterr().out


def test_consolidate_takes_the_trainings_dtype(
    make_run: RunMaker, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command("consolidate", make_run("bfloat16"), "--output", tmp_path / "weights") == 0
    assert "parameters in bfloat16" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["model.safetensors"]


def test_consolidate_gives_the_moments_on_demand(make_run: RunMaker, command: Command, tmp_path: Path) -> None:
    assert command("consolidate", make_run("bfloat16"), "--output", tmp_path / "all", "--optimizer") == 0
    names = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert names == ["exp_avg.safetensors", "exp_avg_sq.safetensors", "model.safetensors"]
    weights, moment = (load_file(tmp_path / "all" / name) for name in (names[2], names[1]))
    assert weights.keys() == moment.keys()
    assert all((value >= 0).all() for value in moment.values()), "of squares"


def test_serve_once_prints_the_four_paths_and_the_mlflow_command(
    make_run: RunMaker, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("float32")
    assert command("serve", "--once", run.parent) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == str(run)
    assert out[1].split() == ["checkpoint", f"{run}/checkpoints/step-00000004"]
    assert out[2].split() == ["export", f"{run}/exports/step-00000004"]
    assert out[3].split()[:2] == ["proof", "passed:"]
    assert out[4].split() == ["loss", "curve", f"{run}/loss_curve.png"]
    assert out[5].endswith(f"mlflow ui --backend-store-uri sqlite:///{run.parent}/mlflow.db")


def test_serve_once_exits_1_with_a_line_for_a_damaged_checkpoint(
    make_run: RunMaker, empty_database: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("float32")
    shutil.copy(empty_database, run.parent / DATABASE_FILE)
    spoil(run, "missing")
    assert command("serve", "--once", run.parent) == 1
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 1
    assert "missing; take another step" in problems[0]


def test_serve_once_that_is_stopped_exits_143(
    new_run: RunMaker, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run()
    monkeypatch.setattr(Service, "__init__", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert command("serve", "--once", run.parent) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("trouble", "code"),
    [(errno.ESTALE, 1), (errno.EIO, 1), (errno.ENOSPC, 1), (errno.EACCES, 2), (errno.ENOTDIR, 2)],
)
def test_a_service_that_meets_a_passing_trouble_at_its_start_may_be_started_again(
    new_run: RunMaker,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    trouble: int,
    code: int,
) -> None:
    def lease(folder: Path) -> None:
        raise OSError(trouble, os.strerror(trouble), str(folder))

    monkeypatch.setattr("checkpoint.service_cli.hold_lease", lease)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert command("serve", new_run().parent) == code
    finally:
        signal.signal(signal.SIGTERM, before)
    (told,) = [line for line in [*caplog.messages, *capsys.readouterr().err.splitlines()] if "smollm2 " in line]
    assert os.strerror(trouble) in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "{empty}"], "{empty} is not a run folder (no run.json); `smollm2 launch train` makes one"),
        (["verify", "{empty}"], "{empty} is not a run folder (no run.json); `smollm2 launch train` makes one"),
        (["verify", "{new}"], "{new} has no complete checkpoint yet; the trainer has not saved one"),
        (["verify", "{run}", "--step", "3"], "{run} has no checkpoint of step 3; it has 2, 4"),
        (["verify", "{run}", "--step", "x"], "{run} has no checkpoint of step x; it has 2, 4"),
        (["export", "{run}", "--step", "7"], "{run} has no checkpoint of step 7; it has 2, 4"),
        (["prove", "{run}"], "step-00000004 of {run} is not exported; run `smollm2 checkpoint export {run}`"),
        (["consolidate", "{run}", "--output", "{empty}"], "{empty} exists already; remove it or name another folder"),
        (["serve", "--once", "{empty}"], "{empty} holds no run folder (none with run.json); `smollm2 launch train`"),
        (["serve", "--once", "{empty}/no"], "{empty}/no does not exist; name the folder that holds the run folders"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    make_run: RunMaker,
    new_run: RunMaker,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    places = {"run": make_run("float32"), "new": new_run("new"), "empty": tmp_path / "empty"}
    places["empty"].mkdir()
    assert command(*(argument.format(**places) for argument in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"smollm2 checkpoint: {message.format(**places)}")


@pytest.mark.parametrize(
    "verb",
    ["list", "verify", "consolidate", "export", "prove", "prune", "pin", "unpin", "evaluate", "publish", "serve"],
)
def test_help_of_every_verb_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args([verb, "--help"])
    assert f"example: smollm2 checkpoint {verb}" in " ".join(capsys.readouterr().out.split())
