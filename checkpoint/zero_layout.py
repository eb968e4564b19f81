"""What lies where in the rank files of a ZeRO checkpoint, of whatever stage and number of ranks. Loads nothing.

A door: other rooms import from here what is named in `__all__`, and know none of the files behind it.

    extents.py        bytes that lie in files, and a reader of them
    stored_tensor.py  tensors as such bytes
    rank_file.py      a rank's file: its pickle's objects without executing it
    zero3_layout.py, zero12_layout.py     where each parameter's weights and moments lie
    zero3_state.py    the whole state of a ZeRO-3 checkpoint, as any other number of ranks would hold it

All of it imports the standard library and what `manifest.py` imports: neither torch nor deepspeed.
"""

from __future__ import annotations

from pathlib import Path

from checkpoint.extents import ExtentReader
from checkpoint.stored_tensor import StoredTensor
from checkpoint.zero3_layout import Part, Zero3Layout, read_layout, refuse_malformed
from checkpoint.zero3_state import Zero3State, rank_optimizer_state, read_state
from checkpoint.zero12_layout import MODEL_FILE, read_zero12_layout

__all__ = ["ExtentReader", "StoredTensor", "Zero3State", "rank_optimizer_state", "read_any_layout", "read_state"]


def read_any_layout(zero_directory: Path, *, part: Part = "weights") -> Zero3Layout:
    """The layout of a checkpoint, whose stage its model file's name tells.

    Raises CheckpointError for what the stage's own module refuses.
    """
    read = read_zero12_layout if (zero_directory / MODEL_FILE).is_file() else read_layout
    with refuse_malformed(zero_directory):
        return read(zero_directory, part=part)
