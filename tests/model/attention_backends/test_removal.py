"""A kernel is one file: without it, the tests of all other kernels pass."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model.attention_backends.selection import KERNELS

ROOT = Path(__file__).resolve().parents[3]
TESTS = Path(__file__).parent.relative_to(ROOT)


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_others_need_no_file_of_it(kernel: str, tmp_path: Path) -> None:
    for folder in ("model", "configs", "tests/model"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "model" / "attention_backends" / f"{kernel}.py").unlink()
    others = [str(TESTS / f"test_{other}.py") for other in KERNELS if other != kernel]
    # started there, so that the copy is what is imported
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *others]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
