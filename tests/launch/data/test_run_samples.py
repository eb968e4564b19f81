"""Which folders a config's datasets have, of which some are mirrors of an object store's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.config import TrainConfig
from launch.data import run_samples
from launch.data.run_samples import dataset_directories
from pipeline.shards.format import DatasetError


@pytest.fixture
def config(train_config: Callable[..., TrainConfig], tmp_path: Path) -> TrainConfig:
    sources = [{"name": name, "path": f"s3://data/{name}"} for name in ("web", "code", "math")]
    sources.append({"name": "notes", "path": str(tmp_path / "notes")})
    return train_config(data={"sources": sources, "sequence_length": 64, "cache_dir": tmp_path / "cache"})


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    run_samples._mirror.cache_clear()


def test_stores_are_asked_at_once_and_each_once(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    together = threading.Barrier(3, timeout=20)

    def mirror(url: str, cache_dir: Path) -> Path:
        asked.append(url)
        together.wait()  # broken if the others are asked only afterwards
        return cache_dir / url.rpartition("/")[2]

    monkeypatch.setattr(run_samples, "mirror_dataset", mirror)
    folders = dataset_directories(config)
    assert folders == {name: tmp_path / "cache" / name for name in ("web", "code", "math")} | {
        "notes": tmp_path / "notes"
    }
    assert list(folders) == ["web", "code", "math", "notes"]
    assert dataset_directories(config) == folders
    assert sorted(asked) == ["s3://data/code", "s3://data/math", "s3://data/web"]


def test_first_of_the_config_that_fails_is_told(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def mirror(url: str, cache_dir: Path) -> Path:
        if not url.endswith("web"):
            raise DatasetError(f"dataset {url} is not finished")
        return cache_dir / "web"

    monkeypatch.setattr(run_samples, "mirror_dataset", mirror)
    with pytest.raises(DatasetError, match=r"^dataset s3://data/code is not finished$"):
        dataset_directories(config)
