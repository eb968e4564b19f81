"""Pruning of real checkpoints: what is spared, what a kill leaves, and the command's words."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace

import pytest

from checkpoint import digests
from checkpoint import prune as pruning
from checkpoint.cli import main
from checkpoint.config import ServiceConfig
from checkpoint.failures import Failures
from checkpoint.jobs import Job, Outcome
from checkpoint.lock import exclusive_lock
from checkpoint.manifest import CheckpointError, checkpoint_directory, encode_manifest, list_steps, read_manifest
from checkpoint.pins import list_pins, pin, unpin
from checkpoint.prune import delete_checkpoint, prune
from checkpoint.reading import claim_checkpoint, hold_checkpoint
from checkpoint.sweep import sweep
from checkpoint.verdicts import check, read_verdicts

RunMaker = Callable[..., Path]
SPAWN = multiprocessing.get_context("spawn")


def config(**retention: object) -> ServiceConfig:
    return ServiceConfig.model_validate({"retention": {"keep_last": 1, **retention}})


@pytest.fixture
def run_of(exported_run: Path) -> Callable[..., Path]:
    """`run_of(1, 2, 3)`: a run with copies of a real checkpoint as these steps; step 4 is exported and proven."""

    def make(*steps: int) -> Path:
        original = checkpoint_directory(exported_run, 4)
        manifest = read_manifest(original)
        for step in steps:
            copy = checkpoint_directory(exported_run, step)
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(original, copy)
            loss = 1.0 if step == 1 else 5.0
            copied = manifest.model_copy(update={"step": step, "validation_loss": loss})
            (copy / "manifest.json").write_bytes(encode_manifest(copied))
        return exported_run

    return make


def damage(run: Path, step: int) -> None:
    checkpoint = checkpoint_directory(run, step)
    path = checkpoint / read_manifest(checkpoint).files[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_what_no_rule_keeps_is_deleted(run_of: Callable[..., Path]) -> None:
    run = run_of(1, 2, 3)
    pruned = prune(run, config())
    assert pruned.deleted == (1, 2, 3)
    assert pruned.freed_bytes == sum(one.size_bytes for one in pruned.decisions[:3])
    assert list_steps(run) == [4]
    assert list((run / "checkpoints").glob(".*")) == [run / "checkpoints" / ".lock"]


def test_the_best_and_the_pinned_stay(run_of: Callable[..., Path]) -> None:
    run = run_of(1, 2, 3)
    pin(run, 3)
    prune(run, config(keep_best=1))
    assert list_steps(run) == [1, 3, 4]
    unpin(run, 3)
    prune(run, config(keep_best=1))
    assert list_steps(run) == [1, 4]


@pytest.mark.parametrize("folder", ["pins", "exports"])
def test_nothing_is_deleted_while_what_protects_it_cannot_be_read(
    run_of: Callable[..., Path],
    unlistable: Callable[..., AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
) -> None:
    run = run_of(1, 2, 3)
    pin(run, 3)
    with unlistable(run / folder):
        with pytest.raises(PermissionError):
            prune(run, config())
        with pytest.raises(PermissionError):
            delete_checkpoint(run, 3) if folder == "pins" else pruning.plan(run, config())
        assert command(monkeypatch, "prune", run, "retention.keep_last=1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run / folder}: Permission denied" in line
    assert list_steps(run) == [1, 2, 3, 4]


def test_nothing_is_deleted_while_an_export_cannot_be_looked_at(run_of: Callable[..., Path]) -> None:
    run = run_of(1)
    export = run / "exports" / "step-00000004"
    shutil.rmtree(export)
    export.symlink_to(export)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        prune(run, config())
    assert list_steps(run) == [1, 2, 4]


def test_a_checkpoint_that_is_linked_loses_its_link_alone(run_of: Callable[..., Path], tmp_path: Path) -> None:
    run = run_of(1, 2, 3)
    moved = checkpoint_directory(run, 2).rename(tmp_path / "bulk")
    checkpoint_directory(run, 2).symlink_to(moved)
    pruned = prune(run, config())
    assert pruned.deleted == (1, 2, 3)
    assert [one.reasons for one in pruned.decisions[:2]] == [
        ("no rule keeps it",),
        ("no rule keeps it", "a link: what it leads to stays"),
    ]
    assert pruned.freed_bytes == pruned.decisions[0].size_bytes + pruned.decisions[2].size_bytes
    assert (list_steps(run), list((run / "checkpoints").glob(".trash*"))) == ([4], [])
    assert read_manifest(moved).step == 2


@pytest.mark.parametrize("target_is_there", [True, False])
def test_a_link_that_a_killed_deletion_left_is_swept(exported_run: Path, tmp_path: Path, target_is_there: bool) -> None:
    checkpoints = exported_run / "checkpoints"
    bulk = (checkpoints / "step-00000002").rename(tmp_path / "bulk")
    trash = checkpoints / ".trash-step-00000002"
    trash.symlink_to(bulk if target_is_there else tmp_path / "unmounted")
    assert sweep(exported_run) == [trash]
    assert not trash.is_symlink()
    assert (bulk / "manifest.json").is_file()


def test_the_one_that_latest_names_stays(run_of: Callable[..., Path]) -> None:
    """A trainer that is killed between its rename and `latest` leaves it on the one before."""
    run = run_of(1, 2, 3)
    (run / "checkpoints" / "latest").write_text("step-00000003\n")
    decisions = {one.step: one for one in prune(run, config()).decisions}
    assert decisions[3].reasons == ("`latest` still names it",)
    assert list_steps(run) == [3, 4]


def test_files_that_a_kill_left_half_replaced_are_swept_when_they_are_old(run_of: Callable[..., Path]) -> None:
    run = run_of()
    (run / "service").mkdir(exist_ok=True)
    half = [run / "checkpoints" / ".latest.partial", run / "service" / ".journal.json.partial", run / ".x.partial"]
    for path in half:
        path.touch()
    assert sweep(run) == []
    for path in half:
        os.utime(path, (0, 0))
    assert sorted(sweep(run)) == sorted(half)
    assert not any(path.exists() for path in half)


def test_the_newest_whole_one_stays_when_newer_ones_are_damaged(run_of: Callable[..., Path]) -> None:
    run = run_of(1, 2, 3)
    for step in (3, 4):
        damage(run, step)
    prune(run, config())
    assert list_steps(run) == [2, 4]
    assert {step: bool(verdict.problems) for step, verdict in read_verdicts(run).items()} == {
        2: False,
        3: True,
        4: True,
    }


def test_a_file_server_that_is_away_for_a_while_makes_no_checkpoint_a_damaged_one(
    run_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(1, 2, 3)
    with monkeypatch.context() as patched:
        patched.setattr(digests, "_digest_range", lambda place, pace: OSError(errno.ESTALE, "Stale file handle"))
        with pytest.raises(OSError, match="Stale file handle"):
            check(run, 1)
        assert read_verdicts(run) == {}
        assert prune(run, config(keep_best=1)).deleted == ()
    prune(run, config(keep_best=1))
    assert list_steps(run) == [1, 4]


def test_a_checkpoint_that_is_saved_again_meanwhile_is_not_the_one_that_was_judged(
    run_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = run_of(2, 3), pruning.plan

    def plan_and_save_again(*arguments: object) -> object:
        decisions = real(*arguments)  # type: ignore[arg-type]
        os.utime(checkpoint_directory(run, 2) / "manifest.json")
        return decisions

    monkeypatch.setattr(pruning, "plan", plan_and_save_again)
    assert prune(run, config()).deleted == (3,)


def test_nothing_is_deleted_where_nothing_is_whole(run_of: Callable[..., Path]) -> None:
    run = run_of(2, 3)
    for step in (2, 3, 4):
        damage(run, step)
    assert prune(run, config()).deleted == ()


def test_one_whose_export_is_wanted_and_not_proven_stays(run_of: Callable[..., Path]) -> None:
    run = run_of(2, 3, 5, 6)
    every = ServiceConfig.model_validate({"exports": "every", "retention": {"keep_last": 1}})
    (run / "checkpoints" / "latest").write_text("step-00000006\n")
    # 4 is exported: 5 and 6 are still to come
    assert prune(run, every).deleted == (2, 3, 4)
    assert list_steps(run) == [5, 6]


def test_one_whose_export_failed_and_is_tried_again_stays_though_newer_ones_are_exported(
    run_of: Callable[..., Path],
) -> None:
    run = run_of(2, 3, 5)
    every = ServiceConfig.model_validate({"exports": "every", "retention": {"keep_last": 1}})
    (run / "checkpoints" / "latest").write_text("step-00000005\n")
    (run / "service").mkdir(exist_ok=True)
    failures = Failures(run, every.jobs)
    failures.record(Job(kind="export", run=run, step=2), Outcome(blame="job", reason="out of memory"))
    assert prune(run, every).deleted == (3, 4)
    assert list_steps(run) == [2, 5]


def test_one_whose_export_failed_its_proof_stays(run_of: Callable[..., Path]) -> None:
    run = run_of(5, 6)
    proven = run / "exports" / "step-00000004"
    quarantined = proven.with_name(".quarantine-step-00000004")
    proven.rename(quarantined)
    proof = (quarantined / "proof.json").read_text()
    (quarantined / "proof.json").write_text(proof.replace('"passed"', '"failed"'))
    prune(run, config())
    assert list_steps(run) == [4, 6]


def hold(checkpoint: Path, has_it: Event, may_go: Event) -> None:
    with hold_checkpoint(checkpoint):
        has_it.set()
        may_go.wait(60)


def test_what_another_process_reads_stays_until_it_ends(run_of: Callable[..., Path]) -> None:
    run = run_of(1, 2)
    has_it, may_go = SPAWN.Event(), SPAWN.Event()
    reader = SPAWN.Process(target=hold, args=(checkpoint_directory(run, 1), has_it, may_go))
    reader.start()
    assert has_it.wait(120)
    assert prune(run, config()).deleted == (2,)
    assert not delete_checkpoint(run, 1)  # decided before the reader came
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGKILL)
    reader.join()
    assert prune(run, config()).deleted == (1,)


def test_what_was_deleted_cannot_be_held(run_of: Callable[..., Path]) -> None:
    run = run_of(1)
    prune(run, config())
    with (
        pytest.raises(CheckpointError, match="step-00000001 does not exist"),
        hold_checkpoint(checkpoint_directory(run, 1)),
    ):
        pass


@pytest.mark.parametrize("files", [0, 2])
def test_a_kill_while_deleting_leaves_trash_that_the_sweeper_removes(run_of: Callable[..., Path], files: int) -> None:
    run = run_of(1, 2)
    # the process is killed at the system call that removes a file
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from checkpoint.config import ServiceConfig\n"
        "from checkpoint.prune import prune\n"
        f"left = {files}\n"
        "def audit(event, arguments):\n"
        "    global left\n"
        "    if event == 'os.remove':\n"
        "        if left == 0:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        left -= 1\n"
        "config = ServiceConfig.model_validate({'retention': {'keep_last': 1}})\n"
        f"run = Path({str(run)!r})\n"
        "sys.addaudithook(audit)\n"
        "prune(run, config)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (run / "checkpoints").glob(".trash-*")] == [".trash-step-00000001"]
    assert list_steps(run) == [2, 4]
    assert sweep(run) == [run / "checkpoints" / ".trash-step-00000001"]
    assert prune(run, config()).deleted == (2,)


def test_two_prunings_of_a_run_are_one_too_many(run_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(1)

    def again(*_: object) -> None:
        with pytest.raises(CheckpointError, match=r"another pruning of .* is under way; wait for its end"):
            prune(run, config())
        raise KeyboardInterrupt

    monkeypatch.setattr(pruning, "plan", again)
    with pytest.raises(KeyboardInterrupt):
        prune(run, config())


def test_a_disk_above_its_mark_takes_what_rules_keep_and_nothing_that_is_promised(
    run_of: Callable[..., Path], mount_tmpfs: Callable[[str], Path]
) -> None:
    original = run_of(1, 2, 3)
    pin(original, 2)
    disk = mount_tmpfs("size=60m")
    run = shutil.copytree(original, disk / "run")
    usage = shutil.disk_usage(disk)
    mark = (usage.used - 1) / usage.total
    assert prune(run, config(keep_last=4)).deleted == ()
    assert prune(run, config(keep_last=4, disk_high_water_fraction=mark)).deleted == (1,)
    assert prune(run, config(keep_last=4, disk_high_water_fraction=0.0001)).deleted == (3,)
    assert list_steps(run) == [2, 4]


def test_the_disk_that_counts_is_that_of_the_checkpoints(
    run_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(1, 2, 3)
    used = {run: 100, run / "checkpoints": 0}
    monkeypatch.setattr(pruning.shutil, "disk_usage", lambda folder: SimpleNamespace(used=used[folder], free=100))
    assert prune(run, config(keep_last=4, disk_high_water_fraction=0.4)).deleted == ()
    used[run], used[run / "checkpoints"] = 0, 100
    assert prune(run, config(keep_last=4, disk_high_water_fraction=0.4)).deleted == (1,)
    shutil.rmtree(run / "checkpoints")
    assert pruning.checkpoints_disk(run) == run


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["smollm2 checkpoint", *map(str, arguments)])
    return main()


def test_dry_run_explains_each_and_deletes_nothing(
    run_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(1, 2, 3)
    pin(run, 2)
    assert command(monkeypatch, "prune", run, "--dry-run", "retention.keep_last=1") == 0
    lines = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], *line[3:]) for line in lines[1:-1]] == [
        ("1", "delete", "no rule keeps it"),
        ("2", "keep", "pinned"),
        ("3", "delete", "no rule keeps it"),
        ("4", "keep", "the newest, the newest that verified, one of the last 1"),
    ]
    assert " ".join(lines[-1]).startswith("would delete 2 of 4 checkpoints, ")
    assert list_steps(run) == [1, 2, 3, 4]
    assert command(monkeypatch, "prune", run, "retention.keep_last=1") == 0
    assert "deleted 2 of 4 checkpoints" in capsys.readouterr().out
    assert list_steps(run) == [2, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("prune",),
            "no rule says what to keep; give one, such as retention.keep_last=3, or a config with `retention:`",
        ),
        (("pin", "--step", "9"), "has no checkpoint of step 9; `smollm2 checkpoint list"),
        (("unpin", "--step", "4"), "is not pinned; pinned: nothing"),
        (("prune", "retention.keep_lst=1"), "unknown key retention.keep_lst; did you mean keep_last?"),
    ],
)
def test_mistakes_are_one_line(
    exported_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    verb, *rest = arguments
    assert command(monkeypatch, verb, exported_run, *rest) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_pins_are_files_that_two_people_can_make(exported_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, "pin", exported_run, "--step", "4") == 0
    assert command(monkeypatch, "pin", exported_run, "--step", "2") == 0
    assert list_pins(exported_run) == {2, 4}
    assert command(monkeypatch, "unpin", exported_run, "--step", "2") == 0
    assert list_pins(exported_run) == {4}


def test_the_sweeper_leaves_what_somebody_may_still_want(exported_run: Path) -> None:
    folder = exported_run / "checkpoints"
    young, old, only_copy = (folder / f".partial-step-0000000{number}" for number in (7, 8, 9))
    for partial in (young, old, only_copy):
        partial.mkdir()
        (partial / "rank").touch()
    (only_copy / "manifest.json").write_text("{}")
    for partial in (old, only_copy):
        for path in (*partial.iterdir(), partial):
            os.utime(path, (0, 0))
    unproven = exported_run / "exports" / ".partial-step-00000006"
    unproven.mkdir()
    assert sweep(exported_run) == [old, unproven]
    assert young.is_dir()
    assert only_copy.is_dir()


def test_the_sweeper_leaves_the_trash_of_a_pruning_that_is_at_work(exported_run: Path) -> None:
    checkpoints = exported_run / "checkpoints"
    trash = checkpoints / ".trash-step-00000002"
    (checkpoints / "step-00000002").rename(trash)
    with exclusive_lock(checkpoints / ".lock", busy=""):
        assert sweep(exported_run) == []
        assert trash.is_dir()
    assert sweep(exported_run) == [trash]


def test_the_sweeper_removes_the_old_one_of_a_replacement_that_was_done(exported_run: Path) -> None:
    checkpoints = exported_run / "checkpoints"
    done, interrupted = checkpoints / ".replaced-step-00000004", checkpoints / ".replaced-step-00000002"
    shutil.copytree(checkpoints / "step-00000004", done)
    (checkpoints / "step-00000002").rename(interrupted)  # the only copy of its step
    assert sweep(exported_run, min_age_s=0.0) == [done]
    assert interrupted.is_dir()


def test_a_pin_that_comes_while_its_checkpoint_is_deleted_is_refused(exported_run: Path) -> None:
    checkpoint = checkpoint_directory(exported_run, 2)
    with ThreadPoolExecutor(1) as threads:
        with claim_checkpoint(checkpoint) as is_free:
            assert is_free
            pinning = threads.submit(pin, exported_run, 2)
            time.sleep(0.2)
            assert list_pins(exported_run) == frozenset()
            checkpoint.rename(checkpoint.with_name(".trash-step-00000002"))
        with pytest.raises(CheckpointError, match="does not exist"):
            pinning.result(timeout=60)
    assert list_pins(exported_run) == frozenset()
