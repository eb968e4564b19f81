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
from launch.trainer.ranks import name_ranks

RANK_MODULE = "launch.preflight.rank_probe"
_GRACE_S = 30.0  # for the launcher to see that its ranks have ended
TELLING_INTERVAL_S = 30.0
_ALL_REDUCE, _STEP = "all-reduce", "step"
_NETWORK_FIX = (
    "see that the nodes reach each other on the master's address and port, and name the interface (NCCL_SOCKET_IFNAME "
    "or GLOO_SOCKET_IFNAME in .deepspeed_env)"
)


def run_trial(
    job: RankJob, placement: Placement, *, ranks: int, environment: Mapping[str, str], say: Callable[[str], None]
) -> list[Finding]:
    """On all ranks; a minute or two where kernels have to be built first. `say` is told that it goes on."""
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
            out, errors = _wait(child, timeout_s=job.timeout_s + _GRACE_S, say=say)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            out, errors = child.communicate()
    said = [json.loads(line.partition(PREFIX)[2]) for line in out.splitlines() if PREFIX in line]
    return list(judge(job.config, said, ranks=ranks, errors=errors))


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
    yield from _failures(config, failures)
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
                f"{name_ranks(missing)} did not say how it went; the launcher: {last[:200]}",
                "start launch train and read RUN/logs",
            )
            return
        elif not any(_is_of_the_step(failure) for failure in failures) and check == _STEP:
            yield not_checked(_STEP, "all", "the ranks did not come that far")


def _is_of_the_step(failure: Mapping[str, Any]) -> bool:
    return str(failure["failed"]).startswith(("a step", "building"))


def _failures(config: TrainConfig, failures: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """One for all ranks that failed in the same words."""
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for failure in failures:
        for words in failure["problems"] if "problems" in failure else [failure["why"]]:
            alike.setdefault((failure["failed"], words), []).append(failure)
    for (_, words), failed in alike.items():
        nodes = {failure["node"] for failure in failed}
        check = _STEP if _is_of_the_step(failed[0]) else _ALL_REDUCE
        who = f"{name_ranks(sorted(failure['rank'] for failure in failed))}: {failed[0]['failed']}"
        if "problems" in failed[0]:  # the user's to mend, with the way out
            what, _, fix = words.partition("; ")
            if not fix or fix.startswith("wanted"):  # of the tensors in a file of weights
                what, fix = words, "fetch the weights of init_from again, or name other ones"
        else:
            what, fix = words, _step_fix(config, words) if check == _STEP else _NETWORK_FIX
        if words.startswith(OVER_TIME):
            fix = f"raise --timeout; if it then does not end either, {fix}"
        yield problem(check, nodes.pop() if len(nodes) == 1 else "all", f"{who}: {what}", fix)


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


def _step_fix(config: TrainConfig, why: str) -> str:
    if why.startswith(OVER_TIME):
        return "start launch train, whose watchdog says where it hangs"
    if "out of memory" in why.lower():
        return (
            f"lower micro_batch_size={config.micro_batch_size}, or take activation_checkpointing=full; "
            "`smollm2 launch plan` says what fits"
        )
    return "the first step of the run would fail so: start launch train and read the traceback in RUN/logs"
