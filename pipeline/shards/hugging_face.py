"""What `datasets.load_from_disk` wants beside the Arrow files of a split."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.shards.format import SplitRecord


def hugging_face_files(directory: Path, record: SplitRecord) -> dict[Path, bytes]:
    """The contents by their places, of a split that has shards."""
    info: dict[str, Any] = {
        "features": {
            "input_ids": {"feature": {"dtype": "uint16", "_type": "Value"}, "_type": "List"},
            "document_id": {"dtype": "string", "_type": "Value"},
        }
    }
    state: dict[str, Any] = {
        "_data_files": [{"filename": Path(shard.path).name} for shard in record.shards],
        "_fingerprint": hashlib.sha256("".join(shard.digest for shard in record.shards).encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    return {
        directory / name: (json.dumps(tree, indent=1) + "\n").encode()
        for name, tree in (("dataset_info.json", info), ("state.json", state))
    }
