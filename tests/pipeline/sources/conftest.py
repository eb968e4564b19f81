"""Datasets of Hugging Face without a network, and folders that cannot be read, for root too."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.sources import huggingface, huggingface_stream


@pytest.fixture
def offline_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No download, no traces in the user's cache, and nothing that another test has opened."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    opened = (huggingface._load, huggingface_stream._open)
    for cache in opened:
        cache.cache_clear()
    yield
    for cache in opened:
        cache.cache_clear()


@pytest.fixture
def refuse_folder(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Root may read every folder, whatever its mode: the refusal is the operating system's call."""
    scandir = os.scandir

    def refuse(folder: Path, *, number: int = errno.EACCES) -> None:
        def scandir_or_refuse(path: Any = ".") -> Any:
            if Path(path) == folder:
                raise OSError(number, os.strerror(number), str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", scandir_or_refuse)

    return refuse
