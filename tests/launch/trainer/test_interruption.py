"""Signals as a wish that all ranks agree on."""

from __future__ import annotations

import os
import signal

import pytest

from launch.trainer.interruption import StopSignals, agreed_signal, exit_code


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


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_one_rank_asked_is_all_ranks_asked() -> None:
    assert agreed_signal([0.0, 0.0, 0.0]) is None
    assert agreed_signal([0.0, 1.0, 0.0]) is signal.SIGINT
    assert agreed_signal([3.0, 1.0, 2.0]) is signal.SIGTERM
    assert agreed_signal([0.0, 0.0, 4.0]) is signal.SIGUSR1


def test_exit_codes_are_the_shells() -> None:
    assert exit_code(signal.SIGTERM) == 143
    assert exit_code(signal.SIGINT) == 130
    assert exit_code(signal.SIGUSR1) == 138
