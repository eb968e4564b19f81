"""The plan of a run: its parts by hand, which rows fit, and what the command says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.load import load
from launch.cli import main
from launch.cluster.plan import DEVICES, USABLE_FRACTION, Row, divisible, plan
from launch.config import TrainConfig, TrainingError
from launch.trainer.throughput import peak_flops

RECIPES = Path(__file__).resolve().parents[3] / "configs" / "train"
PARAMETERS = 1_711_376_384


def rows(*overrides: str, device: str = "h100", mfu: float = 0.4, world_sizes: tuple[int, ...] = (8,)) -> list[Row]:
    config = load(RECIPES / "smollm2-1.7b.yaml", TrainConfig, overrides)
    return plan(config, device=device, mfu=mfu, world_sizes=world_sizes)


def test_states_are_18_bytes_a_parameter_over_the_ranks() -> None:
    assert [row.memory.states for row in rows(world_sizes=(1, 8))[::4]] == [18 * PARAMETERS, -(-18 * PARAMETERS // 8)]


def test_gathered_parameters_and_buckets_are_what_the_settings_allow() -> None:
    [none, *_] = rows("zero.max_live_parameters=1000000", "zero.reduce_bucket_size=500", "zero.reduce_dtype=bfloat16")
    assert (none.memory.gathered, none.memory.buckets) == (2_000_000, 1000)
    [none, *_] = rows("zero.max_live_parameters=100000000000")
    assert none.memory.gathered == 2 * PARAMETERS


def test_rate_and_days_by_hand() -> None:
    [none, *_] = rows()
    flops = 6 * PARAMETERS + 12 * 24 * 2048 * 2048
    assert none.tokens_per_second == pytest.approx(0.4 * 989.4e12 * 8 / flops)
    assert none.days == pytest.approx(5_240_000 * 2_097_152 / none.tokens_per_second / 86_400)


def test_recomputation_costs_time_and_saves_memory() -> None:
    none, every_second, selective, full = rows()
    assert none.tokens_per_second == selective.tokens_per_second
    assert none.tokens_per_second > every_second.tokens_per_second > full.tokens_per_second
    assert none.memory.activations > selective.memory.activations > full.memory.activations
    # a third of the layers' FLOPs but for down_proj's, again
    assert full.tokens_per_second / none.tokens_per_second == pytest.approx(0.80, abs=0.01)


def test_row_that_is_too_large_does_not_fit() -> None:
    none, *_, full = rows("micro_batch_size=16", device="rtx4090", world_sizes=(8,))
    assert (none.fits, full.fits) == (False, True)
    assert full.memory.total <= USABLE_FRACTION * DEVICES["rtx4090"].memory_bytes < none.memory.total


def test_chosen_mode_is_marked_and_added_if_it_is_another() -> None:
    assert [row.chosen for row in rows()] == [True, False, False, False]
    third = rows("activation_checkpointing={mode: every_n_layers, every_n_layers: 3}")
    assert [(row.activation_checkpointing, row.chosen) for row in third][1] == ("every 3 layers", True)
    offloaded = rows("activation_checkpointing={mode: deepspeed, cpu_checkpointing: true}")[-1]
    assert (offloaded.activation_checkpointing, offloaded.chosen) == ("deepspeed", True)
    assert offloaded.memory.activations < rows()[-1].memory.activations


def test_float32_has_memory_and_no_rate() -> None:
    [row, *_] = rows("precision=float32")
    assert row.memory.states == -(-20 * PARAMETERS // 8)
    assert (row.tokens_per_second, row.days) == (None, None)


def test_every_device_has_a_peak() -> None:
    assert [name for name, device in DEVICES.items() if peak_flops(device.name) is None] == []


def test_unknown_device_is_refused() -> None:
    with pytest.raises(TrainingError, match="--device v100 is not in the table; take one of a100-40gb, a100, h100"):
        rows(device="v100")


def test_world_sizes_that_do_not_divide_the_batch_are_left_out_by_default() -> None:
    config = load(RECIPES / "smollm2-135m.yaml", TrainConfig)
    # 2^20 tokens in micro-batches of 2^15
    assert divisible(config, (1, 8, 24, 32, 64)) == [1, 8, 32]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--world-sizes", "3"], "is not a multiple of data.sequence_length * micro_batch_size * 3 ranks"),
        (["--device", "v100"], "--device v100 is not in the table"),
        (["--mfu", "40"], "'40' is not a number above 0 and up to 1, such as 0.4"),
        (["--world-sizes", "8,x"], "'8,x' is not a list of numbers of GPUs, such as 8,16"),
        (["micro_batch_siz=1"], "did you mean micro_batch_size?"),
    ],
)
def test_mistake_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["plan", str(RECIPES / "smollm2-1.7b.yaml"), *arguments])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    assert code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_table_and_json_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(RECIPES / "smollm2-1.7b.yaml"), "--world-sizes", "8"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert "1,711,376,384 parameters" in table
    for line, row in zip(table.splitlines()[-4:], figures["rows"], strict=True):
        assert f"{row['memory']['total'] / 2**30:.2f}" in line
        assert f"{row['days']:,.1f}" in line
        assert sum(size for part, size in row["memory"].items() if part != "total") == row["memory"]["total"]
