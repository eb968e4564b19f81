"""What DeepSpeed's launcher passes on to ranks on other machines, and the file in which a user adds to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def remote_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """As `deepspeed.launcher.runner` exports it (0.19), later ones over earlier ones."""
    exported = {name: value for name, value in environment.items() if name.startswith("PYTHON")}
    here = str(Path.cwd())
    exported["PYTHONPATH"] = f"{here}:{environment['PYTHONPATH']}" if "PYTHONPATH" in environment else here
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    for folder in (Path(environment.get("HOME") or os.path.expanduser("~")), Path()):  # noqa: PTH111
        file = folder / name
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                key, found, value = line.partition("=")
                if found:
                    exported[key.strip()] = value.strip()
    return exported
