"""What a process that this room starts finds of Python code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint.child_environment import child_environment

ROOT = str(Path(__file__).parents[2])


def test_this_code_comes_first_and_what_the_user_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f":/mine:{ROOT}:")
    assert child_environment()["PYTHONPATH"] == f"{ROOT}:/mine"
    monkeypatch.delenv("PYTHONPATH")
    assert child_environment(SEEN="1").items() >= {"PYTHONPATH": ROOT, "SEEN": "1"}.items()


def test_the_current_folder_is_not_searched_nor_by_a_child_of_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("print('executed')")
    grandchild = [sys.executable, "-m", "planted"]
    code = f"import subprocess; raise SystemExit(subprocess.run({grandchild}, capture_output=True, text=True).stderr)"
    monkeypatch.setenv("PYTHONPATH", "")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=child_environment(), capture_output=True, text=True, check=False
    )
    assert done.stderr.strip().endswith("No module named planted")
