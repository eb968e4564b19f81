"""The layout of a checkpoint of whatever ZeRO stage, told by its model file's name."""

from __future__ import annotations

from pathlib import Path

from checkpoint.zero3_layout import Part, Zero3Layout, read_layout
from checkpoint.zero12_layout import MODEL_FILE, read_zero12_layout


def read_any_layout(zero_directory: Path, *, part: Part = "weights") -> Zero3Layout:
    """Raises CheckpointError for what the stage's own module refuses."""
    read = read_zero12_layout if (zero_directory / MODEL_FILE).is_file() else read_layout
    return read(zero_directory, part=part)
