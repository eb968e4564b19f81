"""What both ways to read a dataset of the Hugging Face hub, or a local folder of its kind, say of it."""

from __future__ import annotations

from pipeline.document import SourceError, one_line
from pipeline.source_config import HuggingFaceConfig, HuggingFaceStreamConfig
from pipeline.sources.piece import Piece

HubConfig = HuggingFaceConfig | HuggingFaceStreamConfig


def title(config: HubConfig) -> str:
    """The dataset's name in locations."""
    return "/".join(filter(None, (config.path, config.config_name, config.split)))


def require_version(config: HubConfig, piece: Piece, *, now: str) -> None:
    """Raises SourceError if the dataset of now is not that which the run listed."""
    if now != piece.version:
        raise SourceError(
            f"source {config.name!r}: {config.path} has changed since the run listed it; "
            "restore it, or name its revision and start over"
        )


def reason(error: Exception) -> str:
    """One line. A DatasetGenerationError says only that there was an error; what it was stands in its cause."""
    root = error.__cause__ or error
    return f"{type(root).__name__}: {one_line(root)}"
