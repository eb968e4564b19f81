"""SIGTERM, SIGINT and SIGUSR1 as a wish to stop after the current step, agreed by all ranks. No torch.

The first signal is noted and further ones change nothing, because a launcher and a job manager often both send one;
who cannot wait for the step and its checkpoint has SIGKILL. Exit codes: 143 for SIGTERM, 130 for SIGINT, 138 for
SIGUSR1, by which a job manager says beforehand that time is over: whoever gets 138 may start the run again.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignals:
    """A context manager: inside it, signals are noted in `received`."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in SIGNALS:
            signal.signal(number, self._before[number])  # type: ignore[arg-type]

    def flags(self) -> list[float]:
        """One number a signal, to be summed over ranks."""
        return [float(self.received is number) for number in SIGNALS]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)


def agreed_signal(summed_flags: list[float]) -> signal.Signals | None:
    """The signal that at least one rank has got."""
    return next((number for number, count in zip(SIGNALS, summed_flags, strict=True) if count), None)


def exit_code(number: signal.Signals) -> int:
    """As a shell reports a process that the signal ended."""
    return 128 + int(number)
