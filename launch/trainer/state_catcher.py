"""What DeepSpeed would write at a save, caught instead of written.

DeepSpeed hands each file's contents to its checkpoint engine (`engine.checkpoint_engine`), which is replaced while
`save_checkpoint` runs. All ranks together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from checkpoint.manifest import ZERO_TAG
from launch.trainer.engine import Engine


class _StateCatcher(TorchCheckpointEngine):  # type: ignore[misc]
    """In the place of DeepSpeed's own engine, which writes at once: keeps what is to be written, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.caught: list[tuple[Path, Any]] = []

    def save(self, state_dict: Any, path: str) -> None:
        self.caught.append((Path(path), state_dict))


def catch_states(engine: Engine, partial: Path) -> list[tuple[Path, Any]]:
    """What this rank has to write, by DeepSpeed's names, live tensors and all; DeepSpeed makes the folder."""
    own_engine, catcher = engine.deepspeed.checkpoint_engine, _StateCatcher()
    engine.deepspeed.checkpoint_engine = catcher
    try:
        engine.deepspeed.save_checkpoint(str(partial), tag=ZERO_TAG, save_latest=False)
    finally:
        engine.deepspeed.checkpoint_engine = own_engine
    return catcher.caught


def other_files(partial: Path) -> list[Path]:
    """What DeepSpeed has put there beside the ranks' states, which may appear any moment: rank 0's to describe."""
    return [path for path in partial.rglob("*") if path.is_file() and path.suffix not in (".pt", ".json", ".partial")]
