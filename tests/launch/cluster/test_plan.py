"""The plan of a run: its parts by hand, which rows fit, and what the command says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.load import load
from launch.cli import main
from launch.cluster.devices import DEVICES
from launch.cluster.plan import USABLE_FRACTION, Assumptions, Row, divisible, plan
from launch.cluster.zero_states import Zero, bucket_bytes
from launch.config import TrainConfig, TrainingError
from launch.trainer.throughput import peak_flops

RECIPES = Path(__file__).resolve().parents[3] / "configs" / "train"
PARAMETERS = 1_711_376_384


def rows(*overrides: str, world_size: int = 8, **assumed: Any) -> dict[tuple[str, str], Row]:
    """By stage and mode."""
    config = load(RECIPES / "smollm2-1.7b.yaml", TrainConfig, overrides)
    planned = plan(config, Assumptions(**assumed), world_sizes=[world_size])
    return {(row.zero, row.activation_checkpointing): row for row in planned}


def own(*overrides: str, world_size: int = 8, **assumed: Any) -> Row:
    [row] = [row for row in rows(*overrides, world_size=world_size, **assumed).values() if row.chosen]
    return row


def states(row: Row) -> int:
    memory = row.memory
    return memory.parameters + memory.gradients + memory.master + memory.moments


def test_states_of_stage_3_are_18_bytes_a_parameter_over_the_ranks() -> None:
    assert states(own(world_size=1)) == 18 * PARAMETERS
    assert states(own()) == pytest.approx(18 * PARAMETERS / 8, abs=8)


def test_each_stage_divides_one_thing_more() -> None:
    planned = rows()
    share = PARAMETERS // 8
    whole_gradients = 6 * PARAMETERS  # in fp32, and autograd's own in bf16
    by_stage = {
        "0": (2 * PARAMETERS, whole_gradients, 4 * PARAMETERS, 8 * PARAMETERS),
        "1": (2 * PARAMETERS, whole_gradients, 4 * share, 8 * share),
        "2": (2 * PARAMETERS, 4 * share, 4 * share, 8 * share),
        "3": (2 * share, 4 * share, 4 * share, 8 * share),
    }
    for stage, parts in by_stage.items():
        memory = planned[stage, "none"].memory
        assert (memory.parameters, memory.gradients, memory.master, memory.moments) == parts


def test_offload_leaves_the_parameters_on_the_gpu_and_hpz_adds_a_copy_a_machine() -> None:
    offloaded = rows()["3 offload", "none"]
    # gradients, master copy and moments, and of the latter two the copy of a save
    assert (states(offloaded), offloaded.host_bytes) == (2 * PARAMETERS // 8, (16 + 12) * PARAMETERS // 8)
    hpz = rows(world_size=64)["3 hpZ 8", "none"].memory
    assert hpz.parameters == PARAMETERS // 32 + PARAMETERS // 4
    assert ("3 hpZ 8", "none") not in rows(world_size=8)


def test_asynchronous_save_copies_what_rank_0_saves_to_the_host() -> None:
    planned = rows(world_size=8)
    share = 12 * PARAMETERS // 8
    host = {stage: planned[stage, "none"].host_bytes for stage in ("1", "2", "3")}
    assert host == {"1": share + 2 * PARAMETERS, "2": share + 2 * PARAMETERS, "3": share}
    assert own("checkpoint.asynchronous=false").host_bytes == 0


def test_muon_has_one_moment_for_the_layers_matrices() -> None:
    settings = ("optimizer.name=muon", "optimizer.muon_learning_rate=0.02", "optimizer.gradient_clipping=0")
    matrices = 24 * (4 * 2048 * 2048 + 3 * 2048 * 8192)
    assert own(*settings, world_size=1).memory.moments == 8 * PARAMETERS - 4 * matrices


def test_gathered_parameters_and_buckets_are_what_the_settings_allow() -> None:
    row = own("zero.max_live_parameters=1000000", "zero.reduce_bucket_size=500", "zero.reduce_dtype=bfloat16")
    assert (row.memory.gathered, row.memory.buckets) == (2_000_000, 1000)
    assert own("zero.max_live_parameters=100000000000").memory.gathered == 2 * PARAMETERS
    config = load(RECIPES / "smollm2-1.7b.yaml", TrainConfig, ["zero.reduce_bucket_size=500"])
    assert bucket_bytes(config, Zero(2)) == 4000  # one at work and one on its way
    assert bucket_bytes(config.model_copy(update={"precision": "float32"}), Zero(1)) == 4000


def test_loss_and_compiled_layers_are_counted_as_configured() -> None:
    plain = own("micro_batch_size=4")
    assert own("micro_batch_size=4", "compile=layers").memory.activations < 0.8 * plain.memory.activations
    assert own("micro_batch_size=4", "loss_implementation=liger").memory.working < plain.memory.working
    eager = own("micro_batch_size=4", "attn_implementation=eager")
    assert eager.memory.activations > 2 * plain.memory.activations


def test_rate_and_days_by_hand() -> None:
    row = own(world_size=8)
    flops = 6 * PARAMETERS + 12 * 24 * 2048 * 2048
    assert row.tokens_per_second == pytest.approx(0.4 * 989.4e12 * 8 / flops)
    assert row.days == pytest.approx(5_240_000 * 2_097_152 / row.tokens_per_second / 86_400)
    assert row.gpu_hours == pytest.approx(row.days * 24 * 8)
    assert own(tokens=10**12).days == pytest.approx(10**12 / row.tokens_per_second / 86_400)


def test_slow_network_sets_the_pace_beside_the_computation_or_after_it() -> None:
    computing_s = own().step_time_s
    assert computing_s is not None
    slow = own(bandwidth_bytes_per_s=1e9)
    assert slow.step_time_s == pytest.approx(slow.sent_bytes / 1e9)
    after = own("zero.overlap_comm=false", bandwidth_bytes_per_s=1e9)
    assert after.step_time_s == pytest.approx(computing_s + slow.sent_bytes / 1e9)


def test_sent_bytes_by_hand() -> None:
    planned = rows()
    accumulation, seven_eighths = 2_097_152 // (2048 * 4 * 8), 7 / 8
    # all-reduce once in fp32, then the new parameters; from stage 2 on at each micro-batch; in stage 3 the layers that
    # are further from the turn than half a billion parameters are gathered twice
    whole = {
        "0": 2 * 4 * PARAMETERS,
        "1": 2 * 4 * PARAMETERS + 2 * PARAMETERS,
        "2": accumulation * 2 * 4 * PARAMETERS + 2 * PARAMETERS,
        "3": accumulation * (4 * PARAMETERS + 2 * (2 * PARAMETERS - 500_000_000)),
    }
    for stage, sent in whole.items():
        assert planned[stage, "none"].sent_bytes == pytest.approx(seven_eighths * sent)
    assert own(world_size=1).sent_bytes == 0


def test_recomputation_costs_time_and_saves_memory() -> None:
    none, every_second, selective, full = (
        rows()["3", mode] for mode in ("none", "every 2 layers", "selective", "full")
    )
    assert none.step_time_s == selective.step_time_s
    assert none.step_time_s < every_second.step_time_s < full.step_time_s  # type: ignore[operator]
    assert none.memory.activations > selective.memory.activations > full.memory.activations
    # a third of the layers' FLOPs but for down_proj's, again
    assert none.step_time_s / full.step_time_s == pytest.approx(0.80, abs=0.01)  # type: ignore[operator]


def test_row_that_is_too_large_does_not_fit() -> None:
    planned = rows("micro_batch_size=16", device="rtx4090")
    none, full = planned["3", "none"], planned["3", "full"]
    assert (none.fits, full.fits) == (False, True)
    assert full.memory.total <= USABLE_FRACTION * DEVICES["rtx4090"].memory_bytes < none.memory.total


def test_chosen_mode_is_marked_and_added_if_it_is_another() -> None:
    assert (own().zero, own().activation_checkpointing) == ("3", "none")
    third = own("activation_checkpointing={mode: every_n_layers, every_n_layers: 3}")
    assert third.activation_checkpointing == "every 3 layers"
    offloaded = own("activation_checkpointing={mode: deepspeed, cpu_checkpointing: true}")
    assert offloaded.activation_checkpointing == "deepspeed"
    assert offloaded.memory.activations < rows()["3", "full"].memory.activations


def test_float32_has_memory_and_no_rate() -> None:
    row = own("precision=float32")
    assert states(row) == pytest.approx(20 * PARAMETERS / 8, abs=8)
    assert (row.step_time_s, row.tokens_per_second, row.days, row.gpu_hours) == (None, None, None, None)


def test_float32_says_why_there_are_no_times(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(RECIPES / "smollm2-1.7b.yaml")
    assert (
        main(["plan", recipe, "precision=float32", "micro_batch_size=1", "--device", "b200", "--world-sizes", "8"]) == 0
    )
    told = capsys.readouterr().out
    assert "no times: the peaks that are known are bfloat16's" in told
    assert "faster" not in told
    assert "full activation checkpointing computes more (takes " in told


@pytest.mark.parametrize(
    ("overrides", "device", "line"),
    [
        (
            ["attn_implementation=flash_attention_2", "precision=float32"],
            "h100",
            "on NVIDIA H100 80GB HBM3 attn_implementation=flash_attention_2 needs bfloat16 or float16, got float32; "
            "take sdpa",
        ),
        (
            ["attn_implementation=flash_attention_4"],
            "a100",
            "on NVIDIA A100-SXM4-80GB attn_implementation=flash_attention_4 needs a GPU of compute capability 9.x or "
            "10.x or 11.x, got 8.0; take flash_attention_2 or sdpa",
        ),
        (
            ["attn_implementation=flash_attention_3"],
            "mi300x",
            "on AMD Instinct MI300X attn_implementation=flash_attention_3 needs a GPU of NVIDIA's, got one of AMD's "
            "(ROCm); take flash_attention_2 or sdpa",
        ),
    ],
)
def test_a_kernel_that_the_device_does_not_run_is_not_planned(
    overrides: list[str], device: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(RECIPES / "smollm2-1.7b.yaml"), *overrides, "--device", device]) == 2
    assert capsys.readouterr().err == f"smollm2 launch: {line}\n"


def test_a_kernel_that_the_device_runs_is_planned() -> None:
    assert own("attn_implementation=flash_attention_3", device="h100").fits


def test_a_budget_that_is_no_number_names_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", str(RECIPES / "smollm2-1.7b.yaml"), "--tokens", "2T"])
    assert "'2T' is not a number of tokens above 0, such as 2e12" in capsys.readouterr().err


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
        (["--bandwidth", "0"], "'0' is not a number above 0, such as 50"),
        (["--tokens", "inf"], "'inf' is not a number of tokens above 0, such as 2e12"),
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
    assert main([*command, "--all"]) == 0
    table = capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert "1,711,376,384 parameters" in table
    lines = [line for line in table.splitlines() if line.startswith("    8 ")]
    for line, row in zip(lines, figures["rows"], strict=True):
        assert f"{row['memory']['total'] / 2**30:.2f}" in line
        assert f"{row['days']:,.1f}" in line
        assert sum(size for part, size in row["memory"].items() if part != "total") == row["memory"]["total"]
    [recommended] = figures["recommendations"]
    assert f"8 GPUs: take {' '.join(recommended['overrides'])}: " in table


def test_answer_comes_first_and_rows_that_are_no_settings_only_with_all(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(RECIPES / "smollm2-1.7b.yaml"), "--world-sizes", "16"]
    assert main(command) == 0
    short = capsys.readouterr().out
    assert main([*command, "--all"]) == 0
    long = capsys.readouterr().out
    assert short.index("16 GPUs: take ") < short.index(" GPUs ZeRO ")
    left_out = [line for line in long.splitlines() if line not in short.splitlines() and line.startswith("   16 ")]
    assert [line.split()[1] for line in left_out] == [
        "0",
        "3",
        "3",
    ]  # plain, hpZ, offload
    assert f"no settings here ({len(left_out)} rows, which --all prints)" in short
    assert "--all" not in long
