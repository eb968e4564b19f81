"""How far a run is, for people: a live table on a terminal, elsewhere a line a minute. Both to standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from types import TracebackType
from typing import Any

from pipeline.throughput import Snapshot, Throughput

log = logging.getLogger(__name__)

LINE_INTERVAL_S = 60.0
REDRAW_INTERVAL_S = 0.25

MAX_WORKERS_SHOWN = 16


class ProgressDisplay:
    """Shows what a `Throughput` has counted."""

    def __init__(self, throughput: Throughput) -> None:
        self._throughput = throughput
        self._shown = time.monotonic()
        self._live: Any = None
        self._can_draw = True
        self._stderr: Any = None
        self._redirected: list[logging.StreamHandler[Any]] = []

    def __enter__(self) -> ProgressDisplay:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._stderr = sys.stderr
            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
            # lines of the log would tear the table: they go where rich prints them above it
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is self._stderr:
                    handler.setStream(sys.stderr)
                    self._redirected.append(handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._draw()
            with contextlib.suppress(OSError):
                self._live.stop()
            for handler in self._redirected:
                handler.setStream(self._stderr)

    def show(self) -> None:
        """Redraw the table, or print a line, if the last is old enough."""
        now = time.monotonic()
        if self._live is not None and now - self._shown >= REDRAW_INTERVAL_S:
            self._shown = now
            self._draw()
        elif self._live is None and now - self._shown >= LINE_INTERVAL_S:
            self._shown = now
            log.info("%s", progress_line(self._throughput.snapshot()))

    def _draw(self) -> None:
        """On a terminal that has been closed nothing: SIGHUP ends the run, or is ignored and it goes on."""
        if self._can_draw:
            try:
                self._live.update(table(self._throughput.snapshot()), refresh=True)
            except OSError:
                self._can_draw = False


def progress_line(snapshot: Snapshot) -> str:
    """`42% of 1,234.5 MB, 97.0% kept, 6,789,012 tokens, 345,678 tokens/s (mean 300,000), 1:23:45 left`."""
    parts = [f"{_share(snapshot.input_bytes_done, snapshot.input_bytes_total)} of {_megabytes(snapshot)}"]
    if snapshot.kept_fraction is not None:
        parts.append(f"{snapshot.kept_fraction:.1%} kept")
    parts.append(f"{snapshot.tokens:,} tokens")
    parts.append(f"{snapshot.tokens_per_s_now:,.0f} tokens/s (mean {snapshot.tokens_per_s_mean:,.0f})")
    if snapshot.seconds_left is not None:
        parts.append(f"{duration(snapshot.seconds_left)} left")
    return ", ".join(parts)


def table(snapshot: Snapshot) -> Any:
    """What rich draws: a bar, the sums, and a row for each worker."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    bar = Table.grid(padding=(0, 2), expand=False)
    left = f"{duration(snapshot.seconds_left)} left" if snapshot.seconds_left else ""
    bar.add_row(
        ProgressBar(total=max(snapshot.input_bytes_total, 1), completed=snapshot.input_bytes_done, width=40),
        f"{_share(snapshot.input_bytes_done, snapshot.input_bytes_total)} of {_megabytes(snapshot)}",
        f"units {snapshot.units_done:,} of {snapshot.units_total:,}",
        left,
    )
    sums = Table.grid(padding=(0, 2))
    for name, now, mean in (
        ("tokens/s", snapshot.tokens_per_s_now, snapshot.tokens_per_s_mean),
        ("MB/s", snapshot.input_bytes_per_s_now / 1e6, snapshot.input_bytes_per_s_mean / 1e6),
    ):
        digits = 1 if name == "MB/s" else 0
        sums.add_row(name, f"now {now:,.{digits}f}", f"mean {mean:,.{digits}f}")
    sums.add_row("tokens", f"{snapshot.tokens:,}")
    if snapshot.kept_fraction is not None:
        sums.add_row("kept", f"{snapshot.kept_fraction:.1%}", f"of {snapshot.documents_in:,} documents")
    return Group(bar, sums, *([_worker_table(snapshot)] if snapshot.workers else []))


def duration(seconds: float) -> str:
    """`1:02:03`."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _worker_table(snapshot: Snapshot) -> Any:
    from rich.table import Table

    workers = Table(box=None, padding=(0, 2), header_style="dim")
    for header in ("worker", "unit", "source"):
        workers.add_column(header, no_wrap=True)
    for header in ("done", "tokens/s", "since"):
        workers.add_column(header, justify="right", no_wrap=True)
    for state in snapshot.workers[:MAX_WORKERS_SHOWN]:
        rate = state.tokens / max(state.seconds, 1e-9)
        workers.add_row(
            state.worker,
            str(state.unit),
            state.source,
            _share(state.input_bytes, state.size_bytes),
            f"{rate:,.0f}",
            duration(state.seconds),
        )
    if len(snapshot.workers) > MAX_WORKERS_SHOWN:
        workers.add_row(f"and {len(snapshot.workers) - MAX_WORKERS_SHOWN} more")
    return workers


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.0%}"


def _megabytes(snapshot: Snapshot) -> str:
    return f"{snapshot.input_bytes_total / 1e6:,.1f} MB"
