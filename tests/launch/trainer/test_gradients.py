from __future__ import annotations

import pytest
import torch

from launch.trainer.gradients import end_to_end

BUFFER = torch.arange(20.0)


def test_neighbours_of_one_buffer_are_a_view_of_it() -> None:
    flat = end_to_end([BUFFER[3:7], BUFFER[7:8], BUFFER[8:8], BUFFER[8:20]])
    assert flat.data_ptr() == BUFFER[3:].data_ptr()
    assert torch.equal(flat, BUFFER[3:])


@pytest.mark.parametrize(
    "tensors",
    [
        [BUFFER[3:7], BUFFER[8:9]],  # a gap
        [BUFFER[7:8], BUFFER[3:7]],  # another order
        [BUFFER[3:7], BUFFER[3:7]],
        [BUFFER[0:10:2], BUFFER[5:7]],  # not contiguous
        [BUFFER[3:7], (-BUFFER)[7:]],  # another buffer, at the place that would be next
    ],
)
def test_others_are_copied(tensors: list[torch.Tensor]) -> None:
    flat = end_to_end(tensors)
    assert torch.equal(flat, torch.cat(tensors))
    assert flat.untyped_storage().data_ptr() != BUFFER.untyped_storage().data_ptr()


def test_a_single_tensor_keeps_its_elements() -> None:
    assert torch.equal(end_to_end([BUFFER.view(4, 5)]), BUFFER)
