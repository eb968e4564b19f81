"""The lengths of a split's documents in tokens, EOS included: a histogram, the longest, the middle one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.format import DatasetManifest, SplitRecord
from pipeline.shards.reader import read_rows

# eighths of a power of two: fine enough for a plot and for a median to 9%
_STEPS = 8
_BAR_COLOR, _LINE_COLOR, _GRID_COLOR = "#30638e", "#d1495b", "#e6e6e6"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Documents whose length in tokens, EOS included, is in [low, high)."""

    low: int
    high: int
    documents: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """`counts[k]` documents are of length [edges[k], edges[k + 1]); `longest` is the first of the greatest length."""

    edges: NDArray[np.int64]
    counts: NDArray[np.int64]
    longest: str
    longest_tokens: int

    def powers_of_two(self) -> list[Bucket]:
        """The histogram in powers of two, from the first to the last that has documents."""
        exponents = np.frexp(self.edges[:-1].astype(np.float64))[1] - 1
        counts = np.bincount(exponents, weights=self.counts).astype(np.int64)
        used = np.flatnonzero(counts)
        if not len(used):
            return []
        return [Bucket(1 << k, 1 << (k + 1), int(counts[k])) for k in range(used[0], used[-1] + 1)]

    def median(self) -> int:
        """The greatest length of the class in which the middle document is; at most an eighth above its own."""
        middle = int(np.searchsorted(np.cumsum(self.counts), (self.counts.sum() + 1) // 2))
        return int(self.edges[middle + 1] - 1)


def measure_lengths(dataset: Path, split: SplitRecord) -> Lengths:
    """Reads the bounds of the rows, not their ids. Raises DatasetError for a shard that cannot be read."""
    powers = np.arange(33 * _STEPS + 1) / _STEPS
    edges = np.unique(np.floor(2.0**powers).astype(np.int64))
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    longest, longest_tokens = "", 0
    for shard in split.shards:
        for rows in read_rows(dataset, shard):
            lengths = rows.lengths
            counts += np.bincount(np.searchsorted(edges, lengths, side="right") - 1, minlength=len(counts))
            row = int(lengths.argmax())
            if lengths[row] > longest_tokens:
                longest, longest_tokens = rows.names[row].as_py(), int(lengths[row])
    return Lengths(edges=edges, counts=counts, longest=longest, longest_tokens=longest_tokens)


def draw_lengths(lengths: Lengths, manifest: DatasetManifest, path: Path) -> None:
    """Write the histogram as a PNG, replacing `path` at once: documents above, the tokens that are in them below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.2), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    low, high = lengths.edges[:-1], lengths.edges[1:]
    middle = np.sqrt(low * (high - 1.0))
    # bars by the powers that they span, so that those of short lengths do not stand out for being few
    for axes, amounts, label in (
        (above, lengths.counts, "documents"),
        (below, lengths.counts * middle, "tokens, about"),
    ):
        _draw_bars(axes, low, high, amounts)
        axes.set_ylabel(label)
    above.axvline(lengths.median(), color=_LINE_COLOR, linewidth=1.6, label=f"median about {lengths.median():,}")
    above.legend(frameon=False)
    train = manifest.splits["train"]
    above.set_title(
        f"{manifest.name}: {train.documents:,} training documents, {train.tokens:,} tokens", loc="left", weight="bold"
    )
    below.set_xlabel("tokens a document, EOS included")
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=160, format="png")
    temporary.replace(path)


def _draw_bars(axes: Any, low: NDArray[np.int64], high: NDArray[np.int64], amounts: NDArray[Any]) -> None:
    used = np.flatnonzero(amounts)
    heights = amounts / np.log2(high / low)
    axes.bar(low, heights / _STEPS, width=high - low, align="edge", color=_BAR_COLOR)
    axes.set_xscale("log", base=2)
    if len(used):
        axes.set_xlim(low[used[0]], high[used[-1]])
    axes.xaxis.set_major_formatter(lambda length, _: f"{length:,.0f}")
    axes.yaxis.set_major_formatter(lambda amount, _: f"{amount:,.0f}")
    axes.grid(color=_GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
