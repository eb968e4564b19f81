"""What each verb does when it is killed, when the disk is full, and when what it reads or writes is in a bad state."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.derived.new_directory import new_directory
from pipeline.shards.format import read_manifest
from pipeline.shards.verify import verify_dataset

Command = Callable[[Path, Path], list[str]]

COMMANDS: dict[str, Command] = {
    "merge": lambda dataset, output: ["merge", str(output), str(dataset)],
    "merge --copy": lambda dataset, output: ["merge", str(output), str(dataset), "--copy"],
    # the second part is beside the first
    "split": lambda dataset, output: [
        *("split", str(dataset), str(output), f"{output}-rest", "--documents", "35"),
    ],
    "sample": lambda dataset, output: ["sample", str(dataset), str(output), "--fraction", "0.9"],
    "shuffle": lambda dataset, output: ["shuffle", str(dataset), str(output)],
    "export parquet": lambda dataset, output: ["export", str(dataset), str(output), "--format", "parquet"],
    "export jsonl": lambda dataset, output: ["export", str(dataset), str(output), "--format", "jsonl"],
    "export megatron": lambda dataset, output: ["export", str(dataset), str(output), "--format", "megatron"],
}
every_verb = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the lock, which tells a process."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def run_and_kill_at_rename(arguments: list[str], count: int) -> bool:
    """Run the command in a process that gets SIGKILL before its `count`-th rename or fsync; whether it was killed."""
    child = os.fork()
    if child == 0:
        left = iter(range(count))

        def dying(function: Callable[..., object]) -> Callable[..., object]:
            def step(*arguments: object, **options: object) -> object:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return step

        os.fsync = dying(os.fsync)  # type: ignore[assignment]
        os.rename = dying(os.rename)  # type: ignore[assignment]
        os.replace = dying(os.replace)  # type: ignore[assignment]
        os._exit(main(arguments))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@every_verb
def test_killed_at_any_step_it_leaves_nothing_or_all_and_the_same_command_does_it(
    command: Command, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    assert main(command(dataset, tmp_path / "whole" / "out")) == 0
    expected = contents(tmp_path / "whole")
    before = contents(dataset)
    steps = 0
    folder = tmp_path / "killed"
    folder.mkdir()
    # from a first rename to the last: the remains of each kill are what the next attempt finds
    while run_and_kill_at_rename(command(dataset, folder / "out"), steps):
        for output in folder.glob("[!.]*"):
            made = contents(output)
            assert made == {
                name.removeprefix(f"{output.name}/"): content
                for name, content in expected.items()
                if name.startswith(f"{output.name}/")
            }
        if (folder / "out").exists() and not command(dataset, folder / "out")[0].startswith("split"):
            break  # killed after the rename: it is there
        steps += 1
    assert steps >= 4
    assert contents(folder) == expected
    assert contents(dataset) == before


@every_verb
def test_a_full_disk_is_one_line_and_leaves_nothing(
    command: Command,
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    mount_tmpfs: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    import random

    draw = random.Random(1)
    groups = [[(f"{n}:{m}", (*draw.choices(range(1, 50), k=999), 0)) for m in range(20)] for n in range(4)]
    dataset = make_dataset(tmp_path / "dataset", groups)  # 160 kB
    folder = mount_tmpfs("size=48k")
    capsys.readouterr()
    assert main(command(dataset, folder / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"smollm2 pipeline: {folder}/out: no space left on the disk; free some and run the same command to go on"
    )
    assert list(folder.iterdir()) == []
    mount_tmpfs("remount,size=4m")
    assert main(command(dataset, folder / "out")) == 0
    if "manifest.json" in contents(folder / "out"):
        assert verify_dataset(folder / "out", threads=1) == []


@every_verb
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda dataset: (dataset / "data-00002-000.arrow").unlink(),
            "data-00002-000.arrow cannot be read (missing); ",
        ),
        (
            lambda dataset: os.truncate(dataset / "data-00002-000.arrow", 100),
            "data-00002-000.arrow cannot be read (100 bytes, wanted ",
        ),
        (lambda dataset: (dataset / "tokenizer.json").unlink(), "tokenizer.json is missing; copy it again from where"),
        (
            lambda dataset: (dataset / "tokenizer.json").write_text("{}"),
            "tokenizer.json has changed since the dataset was made; copy it again from",
        ),
        (lambda dataset: (dataset / "manifest.json").unlink(), " is not finished (no manifest.json); make it with"),
    ],
    ids=["shard missing", "shard cut", "tokenizer missing", "tokenizer changed", "unfinished"],
)
def test_a_dataset_that_is_not_whole_is_one_line_and_leaves_nothing(
    command: Command,
    damage: Callable[[Path], object],
    message: str,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(dataset)
    arguments = command(dataset, tmp_path / "out")
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"smollm2 pipeline: {'dataset ' if 'unfinished' in message else ''}")
    assert message in line
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("mount")) == ["dataset"]


@every_verb
def test_an_output_that_is_there_is_refused_and_left_alone(
    command: Command, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    assert main(command(dataset, tmp_path / "out")) == 2
    assert capsys.readouterr().err == (
        f"smollm2 pipeline: {tmp_path}/out is there already; remove it, or choose another output\n"
    )
    assert contents(tmp_path / "out") == {"thesis.tex": b"x"}


@every_verb
def test_two_processes_on_one_output_do_not_mix(
    command: Command, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with new_directory(tmp_path / "out") as directory:
        (directory / "mine").write_text("x")
        assert main(command(dataset, tmp_path / "out")) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"smollm2 pipeline: another pipeline (pid {os.getpid()} on ")
    assert contents(tmp_path / "out") == {"mine": b"x"}


@every_verb
def test_the_same_command_gives_the_same_bytes(command: Command, dataset: Path, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        assert main(command(dataset, tmp_path / folder / "out")) == 0
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_the_last_thing_that_is_written_is_the_manifest(dataset: Path, tmp_path: Path) -> None:
    for name, command in COMMANDS.items():
        output = tmp_path / name.replace(" ", "-")
        assert main(command(dataset, output)) == 0
        if not name.startswith("export"):
            written = max(output.rglob("*"), key=lambda path: path.stat().st_mtime_ns if path.is_file() else 0)
            assert written.name == "manifest.json"
            assert read_manifest(output).name == output.name
