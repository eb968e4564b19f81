"""A run to which everything happens, under supervision: two real ranks, real data that spoils a step, a real hang.

One story, told once, because starting ranks takes long: batch 4 holds a document that makes the gradient no number, and
no rank steps; batch 23 is noise, and the run goes back to step 20 and past it; then rank 1 is stopped, as a broken node
would be, the watchdog ends the run, and the supervisor starts it again to its end.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoint.manifest import list_steps, read_manifest
from launch.data.loader import PackedSamples, Source
from model.config import SmolLM2Config
from model.hf import save_pretrained
from model.init import initialize
from model.transformer import SmolLM2
from pipeline.shards import format as contract

STEPS, SAMPLES, LENGTH, SEED = 60, 16, 64, 7
BAD_ID = 256  # in one document only
CONFIG = SmolLM2Config(
    vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.15, tie_word_embeddings=False,
)  # fmt: skip


@dataclass(frozen=True)
class Spoilt:
    """A dataset of which one document spoils a step, and weights that it does so with."""

    dataset: Path
    weights: Path
    document: str


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory, write_split: Any, chain: Any) -> Spoilt:
    dataset, weights = tmp_path_factory.mktemp("spoilt"), tmp_path_factory.mktemp("weights")
    random = np.random.default_rng(0)
    validation = write_split(dataset, "validation", [chain(random) for _ in range(60)])
    documents = [chain(random) for _ in range(800)]
    write_manifest(dataset, write_split(dataset, "train", documents), validation)
    samples = PackedSamples([Source("chain", dataset, 1.0)], seed=SEED, sequence_length=LENGTH)
    ids, ends = np.concatenate(documents), np.cumsum([len(document) for document in documents])
    # batch 23, all of it, without the ids that end documents
    _, noisy = samples.locate(np.arange(22 * SAMPLES, 23 * SAMPLES))
    for place in noisy:
        row = ids[place * LENGTH : (place + 1) * LENGTH]
        row[row > 0] = random.integers(1, 256, size=int((row > 0).sum()))
    # the sixth sample of batch 4
    _, [bad] = samples.locate(np.array([3 * SAMPLES + 5]))
    position = bad * LENGTH + 20
    position += int(ids[position] == 0)
    ids[position] = BAD_ID
    rewritten = [part.tolist() for part in np.split(ids, ends[:-1])]
    write_manifest(dataset, write_split(dataset, "train", rewritten), validation)
    model = SmolLM2(CONFIG)
    initialize(model, seed=1)
    with torch.no_grad():
        # a number, whose square is none: the loss is one, its gradient is not
        model.embed_tokens.weight[BAD_ID] = 3e38
    save_pretrained(model, weights)
    return Spoilt(dataset, weights, f"chain/train-{int(np.searchsorted(ends, position, side='right'))}")


def write_manifest(dataset: Path, train: contract.SplitRecord, validation: contract.SplitRecord) -> None:
    tokenizer = dataset / contract.TOKENIZER_FILE
    tokenizer.write_text(json.dumps({"made_for": "tests"}))
    manifest = contract.DatasetManifest(
        name="chain",
        tokenizer=contract.TokenizerRecord(digest=contract.digest_file(tokenizer), vocab_size=260, eos_token_id=0),
        splits={"train": train, "validation": validation},
        documents_in=860,
        text_bytes_kept=0,
        config_digest="",
    )
    contract.write_manifest(dataset, manifest)


@pytest.fixture(scope="module")
def story(start_training: Any, spoilt: Spoilt, tmp_path_factory: pytest.TempPathFactory) -> Any:
    started = start_training(
        tmp_path_factory.mktemp("story") / "run",
        f"steps={STEPS}",
        "checkpoint.every_steps=20",
        f"data.sources.0.path={spoilt.dataset}",
        f"init_from={spoilt.weights}",
        *(f"model.{name}={value}" for name, value in CONFIG.model_dump(mode="json").items() if value is not None),
        "guards={spike: {window_steps: 8, min_z: 4, min_rise: 1}, rewind: {max_rewinds: 1}, replicas_every_steps: 5}",
        "watchdog={floor_s: 10, factor: 2}",
        "profile.steps=2-3",
        "--max-restarts=2",
    )
    started.wait_for_step(27)
    os.kill(started.rank_pid(1), signal.SIGSTOP)
    return started.end()


def incidents(story: Any, what: str) -> list[dict[str, Any]]:
    return [
        {"step": event.step, **event.fields}
        for event in story.events
        if event.kind == "incident" and event.fields["what"] == what
    ]


def test_run_comes_to_its_end(story: Any) -> None:
    assert story.code == 0, story.err
    assert story.states() == ["running", "failed", "running", "finished"]
    assert list_steps(story.run)[-1] == STEPS


def test_step_without_a_gradient_is_told_with_its_documents(story: Any, spoilt: Spoilt) -> None:
    [bad] = incidents(story, "not_finite")
    assert bad["step"] == 4
    assert spoilt.document in bad["documents"]
    assert bad["samples"] == list(range(3 * SAMPLES, 4 * SAMPLES))
    assert re.match(
        r"the gradient norm is nan, so no rank took the step; in it: documents chain/train-\d+", bad["text"]
    )
    assert story.metric("train/skipped_steps") == {4: 1}


def test_no_rank_took_it_and_training_went_on(story: Any) -> None:
    for rank in (0, 1):
        file = story.run / "checkpoints" / "step-00000020" / "zero" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        state = torch.load(file, weights_only=False)["optimizer_state_dict"]["optimizer_state_dict"]["state"]
        assert {float(moments["step"]) for moments in state.values()} == {19.0}
    # the next attempt counts on from there
    last = story.run / "checkpoints" / f"step-{STEPS:08d}" / "zero" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    assert torch.load(last, weights_only=False)["skipped_steps"] == 1
    losses = story.metric("train/loss")
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses[STEPS] < 3.0 < losses[5]


def test_spike_is_told_and_answered_by_a_rewind(story: Any) -> None:
    [spike], [rewind] = incidents(story, "spike"), incidents(story, "rewind")
    assert (spike["step"], spike["batch_number"]) == (23, 23)
    assert spike["loss"] > spike["median"] + 1
    assert rewind["text"] == "back to step 20, and on past the next 3 batches"
    assert json.loads((story.run / "rewinds.json").read_text()) == [
        {"spike_step": 23, "checkpoint_step": 20, "skipped_steps": 3}
    ]


def test_data_that_was_left_out_stays_left_out(story: Any) -> None:
    consumed = {
        step: read_manifest(story.run / "checkpoints" / f"step-{step:08d}").samples_consumed for step in (20, 60)
    }
    assert consumed == {20: 20 * SAMPLES, 60: 63 * SAMPLES}
    # the second attempt repeats the first's steps after the rewind, from the checkpoint, and must see the same data
    last_starts = [place for place, event in enumerate(story.events) if event.fields.get("state") == "running"]
    went_back = next(place for place, event in enumerate(story.events) if event.fields.get("what") == "rewind")
    first, second = (
        {event.step: event.fields["train/loss"] for event in part if "train/loss" in event.fields}
        for part in (story.events[went_back : last_starts[1]], story.events[last_starts[1] :])
    )
    repeated = first.keys() & second.keys()
    assert repeated
    assert [first[step] for step in repeated] == [second[step] for step in repeated]


def test_hang_is_told_with_the_rank_that_hangs_and_where_the_other_waits(story: Any) -> None:
    [hang] = incidents(story, "hang")
    assert hang["ranks"] == [1]
    assert re.match(
        r"hang at step \d+: rank gives no sign of life: 1 \(process \d+ on .+, step \d+, \w+\); rank 0 ", hang["text"]
    )
    [line] = [line for line in story.err.splitlines() if line.startswith("launch train: hang at step")]
    assert line.endswith(f"The run was ended; the ranks' stacks are in {story.run}/logs/stacks-rank-*.txt")


def test_stacks_show_the_line_that_waits(story: Any) -> None:
    stacks = (story.run / "logs" / "stacks-rank-0.txt").read_text()
    assert re.search(r'launch/trainer/loop\.py", line \d+ in _train_step', stacks)


def test_hung_run_ends_within_a_minute_of_its_limit(story: Any) -> None:
    [hang] = [event for event in story.events if event.kind == "incident" and event.fields["what"] == "hang"]
    ended = next(event for event in story.events if event.kind == "attempt")
    last_step = max(
        event.timestamp_ms
        for event in story.events
        if "train/loss" in event.fields and event.timestamp_ms < hang.timestamp_ms
    )
    assert (ended.timestamp_ms - last_step) / 1000 < 10 + 60


def test_attempts_are_told(story: Any) -> None:
    hung, finished = [event.fields for event in story.events if event.kind == "attempt"]
    assert (hung["attempt"], hung["exit_code"], hung["first_step"]) == (1, 72, 1)
    assert hung["reason"].startswith("exit code 72: hang at step ")
    assert hung["last_step"] >= 27
    assert (finished["attempt"], finished["exit_code"], finished["last_step"]) == (2, 0, STEPS)
    assert re.search(
        r"launch train: attempt 1 ended after step \d+ \(exit code 72: hang .*\); the next in 10 s", story.err
    )


def test_profile_has_a_trace_of_each_rank(story: Any) -> None:
    for rank in (0, 1):
        trace = json.loads(gzip.decompress((story.run / "profile" / f"rank-{rank}-steps-2-3.json.gz").read_bytes()))
        assert any("all_gather" in str(event.get("name")) for event in trace["traceEvents"])
