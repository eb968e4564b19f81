"""One rank of the trial under DeepSpeed's launcher: an all-reduce of real bytes, a step of the largest micro-batch.

    deepspeed … --module launch.preflight.rank_probe JOB

Says one JSON line on stdout. It ends itself when its time is over, whatever it hangs in, because nothing else could end
it on other machines without ending other jobs there as well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict

from launch.config import TrainConfig, TrainingError
from launch.preflight.node_probe import PREFIX, decode
from launch.trainer.cpu_operator import choose_build_directory
from launch.trainer.ranks import RankEnvironment, adopt_mpi_names, read_environment

TIMEOUT_EXIT_CODE = 72
OVER_TIME = "did not end in"
ROUNDS = 5


class RankJob(BaseModel):
    """`config` is the resolved one, `first_step` the run's; `bytes_on_cpu` and `bytes_on_gpu` are the size of the
    tensor that is summed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: TrainConfig
    timeout_s: float
    first_step: int = 0
    bytes_on_cpu: int = 1 << 22
    bytes_on_gpu: int = 1 << 28


def main() -> None:
    parser = argparse.ArgumentParser(prog="launch.preflight.rank_probe", description=__doc__)
    parser.add_argument("--local_rank", type=int, default=0)
    parser.add_argument("job")
    job = RankJob.model_validate_json(decode(parser.parse_args().job))
    adopt_mpi_names(os.environ)
    ranks = read_environment(os.environ)
    say = _speaker(ranks)
    stage = {"at": "starting"}
    timer = threading.Timer(job.timeout_s, _give_up, (say, stage, job.timeout_s))
    timer.daemon = True
    timer.start()
    choose_build_directory()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_SIZE", 1)))))
    try:
        say({"all_reduce": _all_reduce(job, ranks, stage)})
        say({"step": _step(job, ranks, stage)})
    except TrainingError as error:
        say({"failed": stage["at"], "problems": str(error).splitlines()})
        os._exit(1)
    except Exception as error:
        say({"failed": stage["at"], "why": _summary(error)})
        os._exit(1)
    os._exit(0)


def _all_reduce(job: RankJob, ranks: RankEnvironment, stage: dict[str, str]) -> dict[str, Any]:
    import deepspeed
    import torch
    from deepspeed.accelerator import get_accelerator

    from launch.trainer.cpu_operator import load_cpu_operator, unlink_buffer

    stage["at"] = "joining the process group"
    get_accelerator().set_device(ranks.local_rank)
    on_cpu = get_accelerator().device_name() == "cpu"
    if on_cpu:
        load_cpu_operator(print)
    deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=job.timeout_s))
    if on_cpu:
        torch.distributed.barrier()
        unlink_buffer(rank=ranks.rank, address=os.environ["MASTER_ADDR"], port=os.environ["MASTER_PORT"])
    stage["at"] = "the all-reduce"
    device = torch.device(get_accelerator().device_name(ranks.local_rank))
    size_bytes = job.bytes_on_cpu if on_cpu else job.bytes_on_gpu
    tensor = torch.empty(size_bytes // 4, dtype=torch.float32, device=device)
    elapsed_s = []
    for _ in range(ROUNDS):
        tensor.fill_(ranks.rank + 1)
        torch.distributed.barrier()
        started_s = time.perf_counter()
        torch.distributed.all_reduce(tensor)
        # the values are read, which waits for a GPU as well
        lowest, highest = tensor.min().item(), tensor.max().item()
        elapsed_s.append(time.perf_counter() - started_s)
        wanted = ranks.world_size * (ranks.world_size + 1) / 2
        if lowest != wanted or highest != wanted:
            raise RuntimeError(f"the sum over the ranks is {lowest} to {highest}, wanted {wanted}")
    moved = 2 * (ranks.world_size - 1) / ranks.world_size * size_bytes
    return {"bytes": size_bytes, "bus_bytes_per_s": moved / min(elapsed_s), "world_size": ranks.world_size}


def _step(job: RankJob, ranks: RankEnvironment, stage: dict[str, str]) -> dict[str, Any]:
    """Two steps of one micro-batch a rank, of random tokens: the second has the optimizer's moments beside it."""
    import torch
    from deepspeed.accelerator import get_accelerator

    from launch.trainer.engine import build_engine
    from launch.trainer.kernels import try_kernels

    stage["at"], config = "building the model", job.config
    try_kernels(config, device_type=get_accelerator().device_name(), first_step=job.first_step)
    unit = config.micro_batch_size * config.data.sequence_length * ranks.world_size
    single = config.model_copy(update={"batch_tokens": unit})
    engine = build_engine(single, ranks, fill_weights=True, say=print)
    stage["at"] = f"a step of {config.micro_batch_size} x {config.data.sequence_length} tokens"
    shape = (config.micro_batch_size, config.data.sequence_length)
    tokens = torch.randint(0, config.model.vocab_size, shape, device=engine.device)
    documents = torch.zeros_like(tokens) if config.data.document_masking else None
    elapsed_s, loss = 0.0, float("nan")
    for _ in range(2):
        started_s = time.perf_counter()
        terms = engine.deepspeed(
            tokens, document_ids=documents, labels=tokens, z_loss_coefficient=config.z_loss_coefficient
        )
        engine.deepspeed.backward(terms.total)
        engine.deepspeed.step()
        loss = terms.total.item()
        elapsed_s = time.perf_counter() - started_s
    peak = torch.cuda.max_memory_allocated(engine.device) if engine.device.type == "cuda" else None
    return {"step_time_s": elapsed_s, "loss": loss, "peak_bytes": peak, "device": engine.device_name}


def _speaker(ranks: RankEnvironment) -> Any:
    """Leads what libraries print to a file that goes with the process; returns what writes to the real stdout."""
    real = os.dup(1)
    with tempfile.TemporaryFile() as sink:
        sys.stdout.flush()
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)

    def say(what: dict[str, Any]) -> None:
        line = PREFIX + json.dumps({"rank": ranks.rank, "node": os.uname().nodename, **what})
        os.write(real, f"{line}\n".encode())

    return say


def _give_up(say: Any, stage: dict[str, str], timeout_s: float) -> None:
    say({"failed": stage["at"], "why": f"{OVER_TIME} {timeout_s:g} s"})
    os._exit(TIMEOUT_EXIT_CODE)


def _summary(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:300]}"


if __name__ == "__main__":
    main()
