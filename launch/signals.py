"""The signals that ask a run to stop, and a handler of them for a while. No torch.

A terminal that closes (SIGHUP) asks as SIGTERM does, unless a signal has asked already: who has pressed Ctrl-C may
close it while the run saves. Where SIGHUP is ignored, as under nohup, it stays so.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class SignalHandler:
    """A context manager: inside it `handle` gets the signals, outside of it whatever did before."""

    received: signal.Signals | None  # the first one, which `handle` keeps

    def __init__(self) -> None:
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self.handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._hang_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.handle(signal.SIGTERM, frame)

    def handle(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError
