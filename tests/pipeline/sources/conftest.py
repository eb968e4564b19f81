"""Datasets of Hugging Face without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
