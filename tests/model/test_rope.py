from __future__ import annotations

import math

import torch

from model.rope import rotary_angles, rotate


def test_angle_is_position_times_theta_to_the_minus_2i_over_head_dim() -> None:
    cosine, sine = rotary_angles(torch.tensor([[3]]), head_dim=4, theta=100.0, dtype=torch.float32)
    # i = 0: 3 × 1; i = 1: 3 × 100^(-2/4) = 0.3; each in both halves
    angles = torch.tensor([3.0, 0.3, 3.0, 0.3])
    torch.testing.assert_close(cosine.flatten(), angles.cos())
    torch.testing.assert_close(sine.flatten(), angles.sin())


def test_a_quarter_turn_moves_the_first_half_into_the_second() -> None:
    heads = torch.tensor([1.0, 2.0, 0.0, 0.0]).view(1, 1, 1, 4)
    quarter = torch.full((1, 1, 1, 4), math.pi / 2)
    torch.testing.assert_close(
        rotate(heads, quarter.cos(), quarter.sin()).flatten(), torch.tensor([0.0, 0.0, 1.0, 2.0])
    )


def test_position_zero_does_not_turn() -> None:
    heads = torch.randn(1, 1, 2, 8)
    assert torch.equal(
        rotate(heads, *rotary_angles(torch.zeros(1, 1, dtype=torch.long), head_dim=8, theta=1e4, dtype=torch.float32)),
        heads,
    )


def test_angles_are_computed_in_fp32_before_they_are_rounded() -> None:
    positions = torch.tensor([[2000, 2001]])
    exact, _ = rotary_angles(positions, head_dim=2, theta=1e4, dtype=torch.float32)
    rounded, _ = rotary_angles(positions, head_dim=2, theta=1e4, dtype=torch.bfloat16)
    assert torch.equal(rounded, exact.to(torch.bfloat16))
    assert rounded[0, 0, 0, 0] != rounded[0, 1, 0, 0]
