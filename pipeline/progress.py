"""How far a run is: a bar on a terminal, elsewhere one line every ten seconds. Both to standard error."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

from pipeline.unit import Progress, UnitRecord

log = logging.getLogger(__name__)

LINE_INTERVAL_S = 10.0


class ProgressDisplay:
    """Bytes of input done, tokens made, tokens a second and time left, over all workers."""

    def __init__(self, *, total_bytes: int, done_bytes: int) -> None:
        """`done_bytes` were done by an earlier attempt: they count as done, but not for the speed."""
        self.tokens = 0
        self._total_bytes = total_bytes
        self._before_bytes = done_bytes
        self._done_bytes = done_bytes
        self._under_way: dict[int, Progress] = {}
        self._started = time.monotonic()
        self._told = self._started
        self._bar: Any = None

    def __enter__(self) -> ProgressDisplay:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total_bytes, initial=self._done_bytes, unit="B", unit_scale=True, unit_divisor=1024
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, progress: Progress) -> None:
        self._under_way[progress.unit] = progress

    def finish(self, record: UnitRecord) -> None:
        self._under_way.pop(record.index, None)
        self._done_bytes += record.size_bytes
        self.tokens += record.tokens

    def show(self) -> None:
        """Redraw the bar, or print a line if the last one is old enough."""
        now = time.monotonic()
        done_bytes = self._done_bytes + sum(progress.input_bytes for progress in self._under_way.values())
        tokens = self.tokens + sum(progress.tokens for progress in self._under_way.values())
        elapsed_s = max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.n = done_bytes
            self._bar.set_postfix_str(f"{tokens / elapsed_s:,.0f} tokens/s", refresh=False)
            self._bar.refresh()
        elif now - self._told >= LINE_INTERVAL_S:
            self._told = now
            log.info("%s", progress_line(done_bytes, self._total_bytes, self._before_bytes, tokens, elapsed_s))


def progress_line(done_bytes: int, total_bytes: int, before_bytes: int, tokens: int, elapsed_s: float) -> str:
    """`42% of 1,234.5 MB, 6,789,012 tokens, 345,678 tokens/s, 1:23 left`; speed and time are of this attempt."""
    fresh_bytes = done_bytes - before_bytes
    left = ""
    if fresh_bytes > 0:
        left_s = round((total_bytes - done_bytes) * elapsed_s / fresh_bytes)
        left = f", {left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d} left"
    share = done_bytes / max(total_bytes, 1)
    return f"{share:.0%} of {total_bytes / 1e6:,.1f} MB, {tokens:,} tokens, {tokens / elapsed_s:,.0f} tokens/s{left}"
