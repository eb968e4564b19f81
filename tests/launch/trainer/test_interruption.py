"""Signals as a wish that all ranks agree on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.trainer import stop_request
from launch.trainer.interruption import StopSignals, agreed_signal, exit_code
from launch.trainer.stop_request import STOP_FILE, StopRequests, request_stop, withdraw_stop


@pytest.mark.parametrize(
    ("number", "flags"),
    [(signal.SIGTERM, [1.0, 0.0, 0.0]), (signal.SIGINT, [0.0, 1.0, 0.0]), (signal.SIGUSR1, [0.0, 0.0, 1.0])],
)
def test_signal_is_noted_and_nothing_else_happens(number: signal.Signals, flags: list[float]) -> None:
    with StopSignals() as signals:
        assert signals.flags() == [0.0, 0.0, 0.0]
        os.kill(os.getpid(), number)
        assert signals.flags() == flags


def test_first_signal_counts_and_later_ones_are_borne() -> None:
    with StopSignals() as signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert signals.received is signal.SIGINT


@pytest.fixture
def harmless_hang_up() -> Iterator[None]:
    """By default SIGHUP would end the tests, and under nohup it is ignored."""
    before = signal.signal(signal.SIGHUP, lambda number, frame: None)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("harmless_hang_up")
def test_terminal_that_closes_is_as_sigterm() -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert signals.flags() == [1.0, 0.0, 0.0]


@pytest.mark.usefixtures("harmless_hang_up")
def test_terminal_that_closes_is_nothing_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert signals.received is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.usefixtures("harmless_hang_up")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_handlers_are_given_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before


def test_one_rank_asked_is_all_ranks_asked() -> None:
    assert agreed_signal([0.0, 0.0, 0.0]) is None
    assert agreed_signal([0.0, 1.0, 0.0]) is signal.SIGINT
    assert agreed_signal([3.0, 1.0, 2.0]) is signal.SIGTERM
    assert agreed_signal([0.0, 0.0, 4.0]) is signal.SIGUSR1


def test_exit_codes_are_the_shells() -> None:
    assert exit_code(signal.SIGTERM) == 143
    assert exit_code(signal.SIGINT) == 130
    assert exit_code(signal.SIGUSR1) == 138


def test_request_in_the_runs_folder_is_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_request, "LOOK_INTERVAL_S", 0.0)
    with StopSignals(StopRequests(tmp_path)) as signals:
        assert signals.flags() == [0.0, 0.0, 0.0]
        request_stop(tmp_path, signal.SIGUSR1)
        assert signals.flags() == [0.0, 0.0, 1.0]
        # it was noted, and is taken away by whoever wrote it
        withdraw_stop(tmp_path)
        assert signals.flags() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("content", ["", "SIGKILL\n", b"\xff"])
def test_what_is_no_request_is_none(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / STOP_FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert StopRequests(tmp_path).look() is None


def test_folder_is_looked_at_once_a_second(tmp_path: Path) -> None:
    requests = StopRequests(tmp_path)
    assert requests.look() is None
    request_stop(tmp_path, signal.SIGTERM)
    assert requests.look() is None
    requests._looked_s -= stop_request.LOOK_INTERVAL_S
    assert requests.look() is signal.SIGTERM


def test_folder_that_is_gone_ends_no_run(tmp_path: Path) -> None:
    assert StopRequests(tmp_path / "gone").look() is None
    withdraw_stop(tmp_path / "gone")
