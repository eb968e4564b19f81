"""The environment of the Python processes that this room starts: they find this code, and none in the current folder.

`python -m` puts the current folder first on sys.path. That may be a run folder that somebody else made, whose torch.py
would be executed, or a project with a model.py of its own.
"""

from __future__ import annotations

import os
from pathlib import Path


def child_environment(**changes: str) -> dict[str, str]:
    """This process's, with this code's folder first and without the current one, for the children's children too."""
    root = str(Path(__file__).resolve().parents[1])
    entries = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    # an empty entry is the current folder
    path = os.pathsep.join(dict.fromkeys(filter(None, entries)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **changes}
