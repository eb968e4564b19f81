"""What a rank reads of another number of ranks' files; the loading itself is in tests/checkpoint/test_reshard.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from checkpoint.extents import Extent, ExtentReader
from checkpoint.stored_tensor import flat_tensor
from launch.config import TrainingError
from launch.trainer.elastic import _load, _read_on_first
from launch.trainer.ranks import RankEnvironment


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_what_cannot_be_read_is_told_to_every_rank(one_rank: None, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no ZeRO-3 optimizer files"):
        _read_on_first(tmp_path, RankEnvironment(0, 1, 0, None))


@pytest.mark.parametrize(("name", "dtype"), [("FloatStorage", torch.float32), ("BFloat16Storage", torch.bfloat16)])
def test_a_row_is_put_together_of_its_extents(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    values = torch.arange(10).to(dtype)
    size = values.element_size()
    (tmp_path / "a").write_bytes(values.view(torch.uint8).numpy().tobytes())
    extents = [Extent(tmp_path / "a", 7 * size, 3 * size), Extent(None, 0, size), Extent(tmp_path / "a", 0, 2 * size)]
    with closing(ExtentReader()) as reader:
        loaded = _load({"row": [flat_tensor(name, extents)], "step": 3}, reader)
    assert loaded["step"] == 3
    assert loaded["row"][0].dtype == dtype
    assert loaded["row"][0].tolist() == [7, 8, 9, 0, 0, 1]
