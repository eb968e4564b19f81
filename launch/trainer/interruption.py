"""SIGTERM, SIGINT and SIGUSR1 as a wish to stop after the current step, agreed by all ranks. No torch.

The first signal is noted and further ones change nothing, because a launcher and a job manager often both send one;
who cannot wait for the step and its checkpoint has SIGKILL. Rank 0 also heeds a request in the run's folder
(`stop_request.py`). Exit codes: 143 for SIGTERM, 130 for SIGINT, 138 for SIGUSR1, by which a job manager says
beforehand that time is over: whoever gets 138 may start the run again.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from launch.signals import STOP_SIGNALS, SignalHandler
from launch.trainer.stop_request import StopRequests


class StopSignals(SignalHandler):
    """A context manager: inside it, signals are noted in `received`, and `requests` are looked for."""

    def __init__(self, requests: StopRequests | None = None) -> None:
        super().__init__()
        self.received: signal.Signals | None = None
        self._requests = requests

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._requests is not None:
            self._requests.withdraw()  # or the next start would heed it

    def flags(self) -> list[float]:
        """One number a signal, to be summed over ranks."""
        if self.received is None and self._requests is not None:
            self.received = self._requests.look()
        return [float(self.received is number) for number in STOP_SIGNALS]

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)


def agreed_signal(summed_flags: list[float]) -> signal.Signals | None:
    """The signal that at least one rank has got."""
    return next((number for number, count in zip(STOP_SIGNALS, summed_flags, strict=True) if count), None)


def exit_code(number: signal.Signals) -> int:
    """As a shell reports a process that the signal ended."""
    return 128 + int(number)
