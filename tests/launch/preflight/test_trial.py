"""What is said of a trial by what its ranks have told; `test_preflight.py` makes real ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from configs.load import load
from launch.cluster.launcher import Local
from launch.config import TrainConfig
from launch.preflight import trial
from launch.preflight.rank_probe import OVER_TIME, RankJob
from launch.preflight.trial import judge


@pytest.fixture
def judged(config: Path) -> Any:
    """`judged({...rank's line...}, …, errors="")`: findings of a trial of two ranks, as (check, status, what)."""
    loaded = load(config, TrainConfig)

    def judge_lines(*said: dict[str, Any], errors: str = "") -> list[tuple[str, str, str]]:
        lines = [{"node": "a", **line} for line in said]
        found = judge(loaded, lines, ranks=2, errors=errors)
        return [(finding.check, finding.status, finding.what) for finding in found]

    return judge_lines


def reduced(rank: int, speed: float = 1e9) -> dict[str, Any]:
    return {"rank": rank, "all_reduce": {"bytes": 2**20, "bus_bytes_per_s": speed, "world_size": 2}}


def stepped(rank: int, peak: int | None = None) -> dict[str, Any]:
    return {"rank": rank, "step": {"step_time_s": 0.5, "loss": 1.0, "peak_bytes": peak, "device": "x"}}


def test_slowest_rank_and_largest_memory_are_told(judged: Any) -> None:
    assert judged(reduced(0), reduced(1, 2e8), stepped(0, 2**30), stepped(1, 2**31)) == [
        ("all-reduce", "ok", "2 ranks, 1 MiB, 0.20 GB/s a rank (bus bandwidth)"),
        ("step", "ok", "forward, backward and step of 4 x 64 tokens in 0.50 s, at most 2.0 GiB a GPU"),
    ]


def test_one_rank_has_nothing_to_reduce(config: Path) -> None:
    alone = {"rank": 0, "all_reduce": {"bytes": 2**20, "bus_bytes_per_s": 0.0, "world_size": 1}}
    first = next(iter(judge(load(config, TrainConfig), [alone], ranks=1)))
    assert (first.status, first.what) == ("ok", "1 rank: nothing to reduce")


def test_long_trial_says_that_it_goes_on_until_its_time_is_over(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TELLING_INTERVAL_S", 0.2)
    monkeypatch.setattr(trial, "_GRACE_S", 0.0)
    monkeypatch.setattr(trial, "command_for", lambda *parts: ["sleep", "60"])
    told: list[str] = []
    job = RankJob(config=load(config, TrainConfig), timeout_s=0.7)
    findings = trial.run_trial(job, Local(ranks=1, master_port=1), ranks=1, environment=os.environ, say=told.append)
    # three on an idle machine
    assert 1 <= len(told) <= 3
    assert told[0].startswith("the trial goes on, ")
    assert findings[0].status == "problem"


def test_rank_that_fails_in_the_all_reduce_leaves_the_step_unchecked(judged: Any) -> None:
    assert judged({"rank": 1, "failed": "the all-reduce", "why": "did not end in 5 s"}) == [
        ("all-reduce", "problem", "rank 1: the all-reduce: did not end in 5 s"),
        ("step", "not checked", "the ranks did not come that far"),
    ]


def test_ranks_that_fail_in_the_same_words_are_one_finding_a_problem(config: Path) -> None:
    problems = ["a=1 is wrong; take 2", "b=1 is wrong; take 3"]
    failed = [
        {"rank": rank, "node": f"node-{rank // 8}", "failed": "building the model", "problems": problems}
        for rank in reversed(range(16))
    ]
    other = {"rank": 16, "node": "node-2", "failed": "building the model", "why": "OSError: disk"}
    first, second, third = judge(load(config, TrainConfig), [*failed, other], ranks=17)
    who = "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 8 more: building the model: "
    assert (first.where, first.what, first.fix) == ("all", who + "a=1 is wrong", "take 2")
    assert (second.where, second.what, second.fix) == ("all", who + "b=1 is wrong", "take 3")
    assert (third.where, third.what) == ("node-2", "rank 16: building the model: OSError: disk")
    assert third.fix.endswith("read the traceback in RUN/logs")


@pytest.mark.parametrize(
    "line",
    ["/w: has neither model.safetensors nor an index", "/w: model.norm.weight is missing; wanted shape [48]"],
)
def test_what_is_wrong_with_weights_has_a_way_out(config: Path, line: str) -> None:
    failed = {"rank": 0, "node": "a", "failed": "building the model", "problems": [line]}
    [found] = judge(load(config, TrainConfig), [failed], ranks=1)
    assert found.what == f"rank 0: building the model: {line}"
    assert found.fix == "fetch the weights of init_from again, or name other ones"


@pytest.mark.parametrize(
    ("stage", "check", "then"),
    [
        ("starting", "all-reduce", "see that the nodes reach each other"),
        ("building the model", "step", "start launch train, whose watchdog says where it hangs"),
        ("a step of 4 x 64 tokens", "step", "start launch train, whose watchdog says where it hangs"),
    ],
)
def test_time_that_is_over_is_given_more_first(config: Path, stage: str, check: str, then: str) -> None:
    failed = {"rank": 0, "node": "a", "failed": stage, "why": f"{OVER_TIME} 5 s"}
    first = next(iter(judge(load(config, TrainConfig), [failed], ranks=2)))
    assert first.check == check
    assert first.fix.startswith(f"raise --timeout; if it then does not end either, {then}")


def test_memory_that_is_too_small_is_a_problem_of_the_step(judged: Any, config: Path) -> None:
    failed = {
        "rank": 0,
        "node": "a",
        "failed": "a step of 4 x 64 tokens",
        "why": "OutOfMemoryError: CUDA out of memory",
    }
    [first, second] = judge(
        load(config, TrainConfig), [failed, *({"node": "a", **reduced(r)} for r in (0, 1))], ranks=2
    )
    assert (first.check, first.status) == ("step", "problem")
    assert first.fix.startswith("lower micro_batch_size=4, or take activation_checkpointing=full")
    assert (second.check, second.status) == ("all-reduce", "ok")


def test_silent_rank_is_named_with_the_launchers_last_word(judged: Any) -> None:
    assert judged(reduced(0), errors="noise\nssh: connect refused\n\n") == [
        ("all-reduce", "problem", "rank 1 did not say how it went; the launcher: ssh: connect refused")
    ]
