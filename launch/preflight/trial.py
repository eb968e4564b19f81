"""Starts `rank_probe.py` on all ranks through DeepSpeed's launcher, and judges what the ranks say.

The ranks end themselves when their time is over. The launcher is only ever killed: asked to end, DeepSpeed's pdsh
runner would end all DeepSpeed jobs of this user on every host.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from launch.cluster.launcher import Placement, command_for
from launch.config import TrainConfig
from launch.preflight.findings import Finding, not_checked, ok, problem
from launch.preflight.node_probe import PREFIX, encode
from launch.preflight.rank_probe import OVER_TIME, RankJob

RANK_MODULE = "launch.preflight.rank_probe"
_GRACE_S = 30.0  # for the launcher to see that its ranks have ended
TELLING_INTERVAL_S = 30.0
_ALL_REDUCE, _STEP = "all-reduce", "step"
_NETWORK_FIX = (
    "see that the nodes reach each other on the master's address and port, and name the interface (NCCL_SOCKET_IFNAME "
    "or GLOO_SOCKET_IFNAME in .deepspeed_env)"
)


def run_trial(
    config: TrainConfig,
    placement: Placement,
    *,
    ranks: int,
    environment: Mapping[str, str],
    timeout_s: float,
    say: Callable[[str], None],
) -> list[Finding]:
    """On all ranks; a minute or two where kernels have to be built first. `say` is told that it goes on."""
    job = RankJob(config=config, timeout_s=timeout_s)
    command = command_for(placement, RANK_MODULE, [encode(job)])
    with subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            out, errors = _wait(child, timeout_s=timeout_s + _GRACE_S, say=say)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            out, errors = child.communicate()
    said = [json.loads(line.partition(PREFIX)[2]) for line in out.splitlines() if PREFIX in line]
    return list(judge(config, said, ranks=ranks, errors=errors))


def _wait(child: subprocess.Popen[str], *, timeout_s: float, say: Callable[[str], None]) -> tuple[str, str]:
    """What it wrote to stdout and stderr. Raises TimeoutExpired."""
    started_s = time.monotonic()
    while True:
        left_s = started_s + timeout_s - time.monotonic()
        try:
            return child.communicate(timeout=max(0.0, min(TELLING_INTERVAL_S, left_s)))
        except subprocess.TimeoutExpired:
            if left_s <= TELLING_INTERVAL_S:
                raise
            say(f"the trial goes on, {time.monotonic() - started_s:.0f} s so far")


def judge(config: TrainConfig, said: Sequence[Mapping[str, Any]], *, ranks: int, errors: str = "") -> Iterator[Finding]:
    """`said` are the ranks' lines; `errors` what the launcher wrote to stderr."""
    failures = [line for line in said if "failed" in line]
    for failure in failures:
        yield _failure(config, failure)
    for check, key in ((_ALL_REDUCE, "all_reduce"), (_STEP, "step")):
        done = [line for line in said if key in line]
        if len(done) == ranks:
            yield _summary(config, check, [line[key] for line in done])
        elif not failures:
            missing = sorted(set(range(ranks)) - {line["rank"] for line in done})
            last = ([line for line in errors.splitlines() if line.strip()] or ["nothing on stderr"])[-1].strip()
            yield problem(
                check,
                "all",
                f"rank {', '.join(map(str, missing))} did not say how it went; the launcher: {last[:200]}",
                "start launch train and read RUN/logs",
            )
            return
        elif not any(_is_of_the_step(failure) for failure in failures) and check == _STEP:
            yield not_checked(_STEP, "all", "the ranks did not come that far")


def _is_of_the_step(failure: Mapping[str, Any]) -> bool:
    return str(failure["failed"]).startswith(("a step", "building"))


def _failure(config: TrainConfig, failure: Mapping[str, Any]) -> Finding:
    what = f"rank {failure['rank']}: {failure['failed']}: {failure['why']}"
    check = _STEP if _is_of_the_step(failure) else _ALL_REDUCE
    fix = _step_fix(config, failure) if check == _STEP else _NETWORK_FIX
    if str(failure["why"]).startswith(OVER_TIME):
        fix = f"raise --timeout; if it then does not end either, {fix}"
    return problem(check, failure["node"], what, fix)


def _summary(config: TrainConfig, check: str, figures: Sequence[Mapping[str, Any]]) -> Finding:
    if check == _ALL_REDUCE:
        if figures[0]["world_size"] == 1:
            return ok(check, "all", "1 rank: nothing to reduce")
        slowest = min(figure["bus_bytes_per_s"] for figure in figures)
        return ok(
            check,
            "all",
            f"{figures[0]['world_size']} ranks, {figures[0]['bytes'] / 2**20:.0f} MiB, {slowest / 1e9:.2f} GB/s a rank "
            "(bus bandwidth)",
        )
    slowest_s = max(figure["step_time_s"] for figure in figures)
    peaks = [figure["peak_bytes"] for figure in figures if figure["peak_bytes"] is not None]
    memory = f", at most {max(peaks) / 2**30:.1f} GiB a GPU" if peaks else ""
    size = f"{config.micro_batch_size} x {config.data.sequence_length} tokens"
    return ok(check, "all", f"forward, backward and step of {size} in {slowest_s:.2f} s{memory}")


def _step_fix(config: TrainConfig, failure: Mapping[str, Any]) -> str:
    if str(failure["why"]).startswith(OVER_TIME):
        return "start launch train, whose watchdog says where it hangs"
    if "out of memory" in failure["why"].lower():
        return (
            f"lower micro_batch_size={config.micro_batch_size}, or take activation_checkpointing=full; "
            "`smollm2 launch plan` says what fits"
        )
    return "mend that, as it would fail the first step of the run"
