"""A run that is asked to end by SIGTERM or SIGHUP ends as by Ctrl-C: with its status written and its workers ended.

Schedulers and `kill` send SIGTERM, a terminal that closes SIGHUP; Python itself turns SIGINT alone into an exception.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_received: list[int] = []  # which of them has interrupted this process


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """The first of these signals raises KeyboardInterrupt with its number; later ones find us ending already.

    One that is ignored, as SIGHUP is under nohup, stays so. Does nothing in another thread than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def keeping_signal() -> Iterator[None]:
    """An interrupt that a library raises anew, as Ray does, without the number that it held, holds it again."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if interrupt.args or not _received:
            raise
        raise KeyboardInterrupt(_received[0]) from None


def signal_of(interrupt: KeyboardInterrupt) -> signal.Signals:
    """Which signal it stands for: SIGINT, unless it was raised here."""
    return signal.Signals(interrupt.args[0]) if interrupt.args else signal.SIGINT


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:  # a closing terminal or systemd may send both
        signal.signal(each, signal.SIG_IGN)
    _received.append(number)
    raise KeyboardInterrupt(number)
