"""The command: rooms are found, and a room's errors become one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import subprocess
import sys
from typing import NoReturn

import pytest

from configs.command import ROOMS, run_room


class UserError(ValueError):
    pass


def parser_that_raises(error: BaseException) -> argparse.ArgumentParser:
    def run(_: argparse.Namespace) -> int:
        raise error

    parser = argparse.ArgumentParser(prog="smollm2 room")
    parser.set_defaults(run=run)
    return parser


def run_raising(error: BaseException) -> int:
    return run_room(parser_that_raises(error), user_errors=(UserError,), arguments=[])


def smollm2(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "configs.command", *arguments], capture_output=True, text=True, check=False
    )


def test_a_users_mistake_is_one_line_and_two(capsys) -> None:
    assert run_raising(UserError("got 1, wanted 2")) == 2
    assert capsys.readouterr().err == "smollm2 room: got 1, wanted 2\n"


def test_our_own_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_raising(ZeroDivisionError())


def test_a_full_disk_says_what_to_do(capsys) -> None:
    assert run_raising(OSError(errno.ENOSPC, "No space left on device", "/runs/x")) == 2
    assert capsys.readouterr().err == (
        "smollm2 room: /runs/x: no space left on the disk; free some and run the same command to go on\n"
    )


def test_a_forbidden_path_says_what_to_do(capsys) -> None:
    run_raising(PermissionError(errno.EACCES, "Permission denied", "/root/x"))
    assert "choose a path that this user may write to" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(capsys) -> None:
    assert run_raising(KeyboardInterrupt()) == 130
    assert "run the same command to go on" in capsys.readouterr().err


def test_an_interrupt_while_arguments_are_read_ends_with_130_too(capsys) -> None:
    class Slow(argparse.ArgumentParser):
        def parse_args(self, *_: object, **__: object) -> NoReturn:  # type: ignore[override]
            raise KeyboardInterrupt

    assert run_room(Slow(prog="smollm2 room"), user_errors=(UserError,), arguments=[]) == 130
    assert capsys.readouterr().err == "smollm2 room: interrupted; run the same command to go on\n"


def test_help_lists_every_room() -> None:
    done = smollm2("--help")
    assert done.returncode == 0
    assert all(room in done.stdout for room in ROOMS)


def test_no_room_is_a_usage_error() -> None:
    assert smollm2().returncode == 2


def test_an_unknown_room_is_one_line() -> None:
    done = smollm2("train")
    assert (done.returncode, done.stderr) == (
        2,
        "smollm2: no room 'train'; there are pipeline, model, launch, checkpoint\n",
    )


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_answers_for_help_with_an_example(room: str) -> None:
    done = smollm2(room, "--help")
    assert done.returncode == 0, done.stderr
    assert f"smollm2 {room}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pipelines", "run"], "smollm2: no room 'pipelines'; did you mean pipeline?"),
        (["launch", "traim"], "smollm2 launch: no verb 'traim'; did you mean train?; see smollm2 launch --help"),
        (["pipeline", "run"], "the following arguments are required: CONFIG; see smollm2 pipeline run --help"),
    ],
)
def test_misspelt_word_is_one_line_with_the_nearest(arguments: list[str], words: str) -> None:
    ended = smollm2(*arguments)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert words in line


def test_version_is_the_packages() -> None:
    assert smollm2("--version").stdout.startswith("smollm2 0.")
