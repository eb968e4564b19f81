"""Draws docs/flow.png, the picture of the system in the README: `python docs/flow.py`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, PAPER, ROOM, STORE = "#1f2933", "#ffffff", "#dbeafe", "#fef3c7"
BOX_WIDTH, BOX_HEIGHT = 2.55, 1.25


def box(axes: Axes, x: float, y: float, title: str, text: str, *, color: str) -> None:
    """A rounded box centred on (x, y), its title in bold above its text."""
    corner = (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2)
    style = "round,pad=0.02,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch(corner, BOX_WIDTH, BOX_HEIGHT, boxstyle=style, fc=color, ec=INK, lw=1.1))
    axes.text(x, y + 0.36, title, ha="center", va="center", fontsize=11, weight="bold", color=INK)
    axes.text(x, y - 0.17, text, ha="center", va="center", fontsize=8.5, color=INK, linespacing=1.35)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, lw=1.3, color=INK))


def main() -> None:
    figure, axes = plt.subplots(figsize=(11.6, 3.9), dpi=160, facecolor=PAPER)
    axes.set_xlim(-0.1, 12.5)
    axes.set_ylim(-0.15, 4.0)
    axes.set_axis_off()
    top, bottom = 3.2, 0.75
    columns = (1.3, 4.55, 7.8, 11.05)
    box(
        axes,
        columns[0],
        top,
        "pipeline",
        "documents → BPE ids\nkilled, it goes on;\nsame bytes on any workers",
        color=ROOM,
    )
    box(axes, columns[1], top, "Arrow shards", "a Hugging Face dataset\nand a manifest of digests", color=STORE)
    box(
        axes,
        columns[2],
        top,
        "launch",
        "SmolLM2 under ZeRO-3\norder is arithmetic;\nthe state resumes bit for bit",
        color=ROOM,
    )
    box(
        axes,
        columns[3],
        top,
        "run folder",
        "checkpoints by one rename,\nan event log,\na probe of the loss",
        color=STORE,
    )
    box(axes, columns[3], bottom, "checkpoint", "verify, consolidate,\nexport, prove, ship", color=ROOM)
    box(
        axes,
        columns[2],
        bottom,
        "weights",
        "Hugging Face directory\nthat computes what\nthe trainer computed",
        color=STORE,
    )
    box(axes, columns[1], bottom, "MLflow", "one run, each step once,\nwhatever died in between", color=STORE)
    gap = BOX_WIDTH / 2 + 0.06
    for left, right in pairwise(columns):
        arrow(axes, (left + gap, top), (right - gap, top))
    arrow(axes, (columns[3], top - BOX_HEIGHT / 2 - 0.05), (columns[3], bottom + BOX_HEIGHT / 2 + 0.05))
    arrow(axes, (columns[3] - gap, bottom), (columns[2] + gap, bottom))
    under = bottom - BOX_HEIGHT / 2 - 0.05
    bend = FancyArrowPatch(
        (columns[3] - 0.5, under), (columns[1] + 0.5, under), arrowstyle="-|>", mutation_scale=13, lw=1.3, color=INK,
        connectionstyle="arc3,rad=-0.06",
    )  # fmt: skip
    axes.add_patch(bend)
    box(axes, columns[0], bottom, "model", "plain PyTorch; used by\nlaunch and by checkpoint", color=ROOM)
    figure.savefig(Path(__file__).with_name("flow.png"), bbox_inches="tight", pad_inches=0.05)


if __name__ == "__main__":
    main()
