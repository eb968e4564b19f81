"""Training as a user starts it: real launcher, real ranks, real signals; two CPU ranks and a tiny model.

Starting ranks takes about ten seconds, so each story is told once, by a fixture, and the tests look at what it left.
"""

from __future__ import annotations

import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoint.manifest import MIN_PROBE_TOKENS, list_steps, read_manifest, verify_checkpoint
from checkpoint.run_record import read_run
from launch.data.loader import PackedSamples, Source
from model.config import SmolLM2Config
from model.hf import load_pretrained, save_pretrained
from model.init import initialize
from model.transformer import SmolLM2

STEPS = 30
SEED = 7
METRICS = {
    "train/loss",
    "train/learning_rate",
    "train/grad_norm",
    "train/tokens_per_second",
    "train/step_time_s",
    "train/tokens_consumed",
    "train/data_wait_s",
}


def model_of(run: Path, step: int) -> SmolLM2Config:
    return SmolLM2Config.model_validate(read_manifest(run / "checkpoints" / f"step-{step:08d}").model)


@pytest.fixture(scope="session")
def whole(start_training: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """From the beginning to the end, undisturbed."""
    return start_training(tmp_path_factory.mktemp("whole") / "run").end()


@pytest.fixture(scope="session")
def killed(start_training: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Rank 0 killed with -9 after step 22, two checkpoints behind it; test_whole_path.py kills the other."""
    started = start_training(tmp_path_factory.mktemp("killed") / "run")
    started.wait_for_step(22)
    started.wait_for_checkpoint(20)
    os.kill(started.rank_pid(0), signal.SIGKILL)
    return started.end()


@pytest.fixture(scope="session")
def mended(start_training: Any, killed: Any) -> Any:
    """The same command again, a bit of the newest checkpoint flipped meanwhile."""
    [damaged] = (killed.run / "checkpoints" / "step-00000020" / "zero").glob("*pp_rank_1_*_optim_states.pt")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    return start_training(killed.run).end()


@pytest.fixture(scope="session")
def stopped(start_training: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """SIGTERM to the command; no gradient accumulation, where `whole` has two micro-batches."""
    started = start_training(tmp_path_factory.mktemp("stopped") / "run", "micro_batch_size=8")
    started.wait_for_step(4)
    started.process.send_signal(signal.SIGTERM)
    return started.end()


@pytest.fixture(scope="session")
def gone_on(start_training: Any, stopped: Any, chain_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The stopped run again, by DeepSpeed's own command, its dataset read through a cache as from an object store."""
    moved = f"data.sources.0.path=file://{chain_dataset}"
    cache = f"data.cache_dir={tmp_path_factory.mktemp('cache')}"
    return start_training(stopped.run, "micro_batch_size=8", moved, cache, by_hand=True).end()


class TestWholeRun:
    def test_ends_well(self, whole: Any) -> None:
        assert whole.code == 0, whole.err
        assert whole.states() == ["running", "finished"]

    def test_loss_falls_from_chance_to_what_was_learnt(self, whole: Any) -> None:
        loss = whole.metric("train/loss")
        # ln 256 = 5.5 by guessing; 0.9 if the rule and its exceptions are known
        assert loss[1] > 5.0
        assert loss[STEPS] < 3.0

    def test_every_step_tells_every_metric(self, whole: Any) -> None:
        for step in range(1, STEPS + 1):
            told = {key for event in whole.events if event.step == step for key in event.fields}
            assert told >= METRICS
            # a CPU has no peak in the table
            assert "train/mfu" not in told
        assert whole.metric("train/tokens_consumed")[STEPS] == STEPS * 1024

    def test_every_step_tells_how_the_node_is_doing(self, whole: Any) -> None:
        busy = whole.metric("system/node-0/cpu_utilization_percentage")
        assert sorted(busy) == list(range(1, STEPS + 1))
        assert all(0 <= share <= 100 for share in busy.values())
        # of the two ranks of the node one tells it
        assert [path.name for path in (whole.run / "events").iterdir()] == ["rank-0.jsonl"]

    def test_learning_rate_is_the_schedules(self, whole: Any) -> None:
        rate = whole.metric("train/learning_rate")
        # warm up over 3 steps, the peak of 0.01 until step 20, then down by a tenth a step
        assert rate[1] == pytest.approx(0.01 / 3)
        assert [rate[3], rate[20]] == [0.01, 0.01]
        assert rate[25] == pytest.approx(0.006)
        assert rate[30] == pytest.approx(0.001)

    def test_screen_shows_our_lines_and_nothing_else(self, whole: Any) -> None:
        assert whole.err == ""
        lines = whole.out.splitlines()
        ours = ("run tiny: ", "step ", "finished: ", "compiling DeepSpeed's collective")
        assert [line for line in lines if not line.startswith(ours)] == []
        assert len([line for line in lines if "tokens/s" in line]) == 3

    def test_validation_loss_is_told_and_kept_with_the_checkpoint(self, whole: Any) -> None:
        told = whole.metric("validation/loss")
        assert sorted(told) == [0, 15, 30]
        assert read_manifest(whole.run / "checkpoints" / "step-00000030").validation_loss == told[30]
        assert read_manifest(whole.run / "checkpoints" / "step-00000010").validation_loss is None

    def test_ledger_is_told_and_kept_with_the_checkpoint(self, whole: Any) -> None:
        tokens, epochs = whole.metric("tokens/chain"), whole.metric("epoch/chain")
        assert tokens == {step: step * 1024 for step in (10, 15, 20, 30)}
        assert read_manifest(whole.run / "checkpoints" / "step-00000020").tokens_by_source == {"chain": 20 * 1024}
        assert epochs[30] == pytest.approx(2 * epochs[15])

    def test_the_only_sources_loss_is_the_validation_loss(self, whole: Any) -> None:
        assert whole.metric("validation_loss/chain") == whole.metric("validation/loss")

    def test_checkpoints_are_whole_and_told(self, whole: Any) -> None:
        assert list_steps(whole.run) == [10, 20, 30]
        for step in (10, 20, 30):
            assert verify_checkpoint(whole.run / "checkpoints" / f"step-{step:08d}") == []
        assert (whole.run / "checkpoints" / "latest").read_text() == "step-00000030\n"
        told = [event.fields["path"] for event in whole.events if event.kind == "checkpoint"]
        assert [Path(path).name for path in told] == ["step-00000010", "step-00000020", "step-00000030"]

    def test_checkpoint_takes_twelve_bytes_a_parameter(self, whole: Any) -> None:
        [parameters] = [event.fields["num_parameters"] for event in whole.events if event.kind == "params"]
        files = read_manifest(whole.run / "checkpoints" / "step-00000020").files
        state = sum(file.size_bytes for file in files if file.path.endswith("_optim_states.pt"))
        # fp32 weights and two moments; the rest is names and shapes
        assert 12 <= state / parameters < 12.5
        assert sum(file.size_bytes for file in files) - state < 100_000

    def test_manifest_covers_every_file(self, whole: Any) -> None:
        folder = whole.run / "checkpoints" / "step-00000020"
        named = {record.path for record in read_manifest(folder).files}
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert there - named == {"manifest.json"}

    def test_manifest_says_what_was_consumed_and_by_whom(self, whole: Any) -> None:
        manifest = read_manifest(whole.run / "checkpoints" / "step-00000020")
        assert (manifest.tokens_consumed, manifest.samples_consumed) == (20 * 1024, 20 * 16)
        assert (manifest.world_size, manifest.zero_stage, manifest.dtype) == (2, 3, "float32")
        assert manifest.run_key == read_run(whole.run).run_key

    def test_probe_is_long_enough_and_near_the_validation_loss(self, whole: Any) -> None:
        manifest = read_manifest(whole.run / "checkpoints" / "step-00000030")
        assert manifest.probe is not None
        assert sum(map(len, manifest.probe.token_ids)) >= MIN_PROBE_TOKENS
        assert manifest.validation_loss == pytest.approx(manifest.probe.mean_negative_log_likelihood, abs=0.5)

    def test_run_folder_says_what_ran(self, whole: Any, chain_dataset: Path) -> None:
        assert (whole.run / "tokenizer.json").read_bytes() == (chain_dataset / "tokenizer.json").read_bytes()
        assert "micro_batch_size: 4" in (whole.run / "config.yaml").read_text()
        [params] = [event.fields for event in whole.events if event.kind == "params"]
        assert params["optimizer.learning_rate"] == 0.01
        assert (params["world_size"], params["attention"]) == (2, "sdpa")


class TestKilledRun:
    def test_is_told_with_the_way_to_the_log_and_fails(self, killed: Any) -> None:
        assert killed.code != 0
        [cause, where] = killed.err.splitlines()
        assert "a process was ended by SIGKILL" in cause
        assert where.startswith("launch train: all output is in ")
        # the one that keeps the log is gone: the service tells MLflow by the lock
        assert killed.states() == ["running"]
        assert max(killed.metric("train/loss")) >= 22

    def test_leaves_no_shared_memory(self, killed: Any) -> None:
        # DeepSpeed names its buffers by the port; on a machine without its collective there are none
        ports = re.findall(r"--master_port=(\d+)", (killed.run / "logs" / "launcher.log").read_text())
        assert ports
        assert [file for port in ports for file in Path("/dev/shm").glob(f"deepspeed_*_{port}_*")] == []

    def test_goes_on_from_the_checkpoint_before_the_damaged_one(self, mended: Any) -> None:
        assert mended.code == 0, mended.err
        assert "passed over checkpoint step-00000020/zero/zero_pp_rank_1_mp_rank_00_optim_states.pt" in mended.out
        assert "resuming from step-00000010" in mended.out

    def test_every_later_loss_equals_the_undisturbed_runs_to_the_last_bit(self, mended: Any, whole: Any) -> None:
        for key in ("train/loss", "train/grad_norm", "train/learning_rate", "validation/loss"):
            # as told last, that is after the resume from step 10 on
            assert mended.metric(key) == whole.metric(key)

    def test_damaged_checkpoint_is_saved_again(self, mended: Any) -> None:
        assert list_steps(mended.run) == [10, 20, 30]
        assert verify_checkpoint(mended.run / "checkpoints" / "step-00000020") == []

    def test_is_one_run(self, killed: Any, mended: Any) -> None:
        assert mended.states() == ["running", "running", "finished"]
        keys = {read_manifest(folder).run_key for folder in (mended.run / "checkpoints").glob("step-*")}
        assert keys == {read_run(killed.run).run_key}


class TestStoppedRun:
    def test_finishes_its_step_saves_and_says_how_to_go_on(self, stopped: Any) -> None:
        assert stopped.code == 143, stopped.err
        last = max(stopped.metric("train/loss"))
        assert 4 <= last < STEPS
        assert list_steps(stopped.run)[-1] == last
        assert verify_checkpoint(stopped.run / "checkpoints" / f"step-{last:08d}") == []
        assert f"stopped by SIGTERM after step {last}; run the same command to go on" in stopped.out
        assert stopped.states() == ["running", "killed"]

    def test_goes_on_by_deepspeeds_own_command(self, stopped: Any, gone_on: Any) -> None:
        assert gone_on.code == 0, gone_on.err
        assert f"resuming from step-{list_steps(stopped.run)[0]:08d}" in gone_on.out
        assert gone_on.states()[-1] == "finished"

    def test_accumulation_does_not_change_the_loss(self, stopped: Any, whole: Any) -> None:
        # the same samples; only the order of fp32 sums differs
        assert stopped.metric("train/loss")[1] == pytest.approx(whole.metric("train/loss")[1], rel=1e-6)
        assert stopped.metric("train/loss")[4] == pytest.approx(whole.metric("train/loss")[4], rel=1e-4)

    def test_accumulation_does_not_change_where_the_run_ends(self, gone_on: Any, whole: Any) -> None:
        # thirty steps let rounding grow; losing one micro-batch's gradient would show by far more
        assert gone_on.metric("validation/loss")[STEPS] == pytest.approx(
            whole.metric("validation/loss")[STEPS], rel=2e-2
        )
        assert gone_on.metric("train/grad_norm")[STEPS] == pytest.approx(
            whole.metric("train/grad_norm")[STEPS], rel=0.1
        )


@pytest.fixture(scope="session")
def weights(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of the tiny architecture."""
    folder = tmp_path_factory.mktemp("weights")
    model = SmolLM2(model_of(whole.run, 10))
    initialize(model, seed=99)
    save_pretrained(model, folder, dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="session")
def pretrained(train_on_ranks: Any, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """From those weights: bf16, recomputed activations, one rank, two steps."""
    overrides = ["steps=2", "schedule.warmup_steps=0", "schedule.decay_steps=0"]
    precision = ["precision=bfloat16", "activation_checkpointing=full", f"init_from={weights}"]
    return train_on_ranks(1, tmp_path_factory.mktemp("pretrained") / "run", *overrides, *precision)


class TestPretrainedStart:
    def test_first_loss_is_the_pretrained_models(self, pretrained: Any, weights: Path, chain_dataset: Path) -> None:
        assert pretrained.code == 0, pretrained.err
        samples = PackedSamples([Source("chain", chain_dataset, 1.0)], seed=SEED, sequence_length=64)
        model = load_pretrained(weights)
        batch = samples.read(np.arange(16))
        with torch.no_grad():
            expected = [
                model(batch.input_ids[rows], document_ids=batch.document_ids[rows], labels=batch.labels[rows]).item()
                for rows in torch.arange(16).split(4)
            ]
        assert pretrained.metric("train/loss")[1] == pytest.approx(math.fsum(expected) / 4, rel=1e-6)

    def test_bfloat16_is_written_down(self, pretrained: Any) -> None:
        assert read_manifest(pretrained.run / "checkpoints" / "step-00000002").dtype == "bfloat16"
        assert pretrained.metric("train/loss")[2] != pretrained.metric("train/loss")[1]


@pytest.fixture(scope="session")
def compiled(train_on_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The first steps with compiled layers that recompute each second of them; eager attention is compiled whole."""
    overrides = ["compile=layers", "attn_implementation=eager", "steps=12", "schedule.decay_steps=0"]
    mode = "activation_checkpointing={mode: every_n_layers, every_n_layers: 2}"
    return train_on_ranks(2, tmp_path_factory.mktemp("compiled") / "run", *overrides, mode)


@pytest.mark.campaign
class TestCompiledRun:
    def test_loss_is_that_of_the_layers_as_written(self, compiled: Any, whole: Any) -> None:
        assert compiled.code == 0, compiled.err
        # the same model and samples, other kernels: rounding grows from step to step
        assert compiled.metric("train/loss")[1] == pytest.approx(whole.metric("train/loss")[1], rel=1e-6)
        assert compiled.metric("train/loss")[12] == pytest.approx(whole.metric("train/loss")[12], rel=1e-3)

    def test_builds_once_and_tells_how_long_it_took(self, compiled: Any) -> None:
        built = compiled.metric("train/compile_time_s")
        # none after the first step, through the evaluation and the save at step 10
        assert list(built) == [1]
        startup = compiled.metric("train/startup_time_s")
        assert list(startup) == [1]
        assert 0 < built[1] < startup[1]
        assert " s from the start to here, of which torch.compile built for " in compiled.out


def test_run_that_diverges_stops_with_one_line(start_training: Any, tmp_path: Path) -> None:
    overrides = ["optimizer.learning_rate=1e30", "schedule.warmup_steps=0", "launcher.ranks_per_node=1"]
    ended = start_training(tmp_path / "run", *overrides).end()
    assert ended.code == 2
    [line] = [line for line in ended.err.splitlines() if line.startswith("launch train: ")]
    assert "so the step was not taken, number 10 in a row; the run stopped. Lower optimizer.learning_rate" in line
    assert "Traceback" not in ended.err
    assert ended.states() == ["running", "failed"]
    assert list_steps(tmp_path / "run") == []
