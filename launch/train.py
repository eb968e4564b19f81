"""One rank of a training run: what DeepSpeed's launcher starts on every device.

    smollm2 launch train CONFIG key=value …
    deepspeed --num_gpus 2 --module launch.train CONFIG key=value …
    deepspeed --hostfile HOSTS --module launch.train CONFIG key=value …

Order matters here: the outputs are led to the log before torch and DeepSpeed, the noisy ones, are imported, and what
can be wrong is found by rank 0 before the process group is made, so that a mistake costs a second.

Exit codes: 0 done; 1 a defect; 2 the user's to mend; 130, 138 and 143 stopped by SIGINT, SIGUSR1 and SIGTERM after
saving; 71 the launcher is gone; 72 a hang (docs/operations.md).
"""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from checkpoint.manifest import CheckpointError
from configs.load import ConfigError, dump, load
from launch.config import LocalError, TrainConfig, TrainingError
from launch.data.object_store import StoreUnreachableError
from launch.trainer.console import Console, is_lost_peer, open_console
from launch.trainer.cpu_operator import choose_build_directory
from launch.trainer.data_history import read_history
from launch.trainer.guards import ReplicaError
from launch.trainer.heartbeat import Heartbeat
from launch.trainer.inputs import Inputs, read_inputs
from launch.trainer.lock import hold_lock
from launch.trainer.orphans import watch_parents
from launch.trainer.ranks import RankEnvironment, adopt_mpi_names, read_environment
from launch.trainer.run_folder import StartPoint, create_run_folder, prepare_run, previous_config
from launch.trainer.watchdog import Watchdog
from pipeline.shards.format import DatasetError

# DeepSpeed's watcher looks once a second and passes on the first failure that it comes upon: a rank that only lost its
# peer waits until the peer's own exit code, which tells why, has been seen
FIRST_TO_END_S = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank to its end and return its exit code."""
    parsed = _parser().parse_args(arguments)
    adopt_mpi_names(os.environ)
    try:
        config = load(parsed.config, TrainConfig, parsed.overrides)
        ranks = read_environment(os.environ)
        config.accumulation_steps(world_size=ranks.world_size)
        console = open_console(config.run_dir, rank=ranks.rank)
    except (ConfigError, TrainingError) as error:
        rank = int(os.environ.get("RANK", "0"))
        if speaks(rank=rank, local_rank=int(os.environ.get("LOCAL_RANK", "0"))):
            whose = f"rank {rank}: " if rank else ""
            print(*(f"launch train: {whose}{line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
        return 2
    watch_parents(launcher_pid=ranks.launcher_pid)
    choose_build_directory()
    use_huge_pages()
    leave_out_mlflow()
    _record_collectives(config)
    # torch would take every core for every rank
    local_size = int(os.environ.get("LOCAL_SIZE", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // local_size)))
    watchdog = Watchdog(config.watchdog, ranks, run_dir=config.run_dir, alarm=console.alarm)
    watchdog.start()
    return _run(config, ranks, console, watchdog.heartbeat)


def speaks(*, rank: int, local_rank: int) -> bool:
    """Whether a rank has to tell what it has found before it knows of the others: rank 0, and the first of another
    node, after a while in which it would have been ended if rank 0 had found the same."""
    if rank and not local_rank:
        time.sleep(FIRST_TO_END_S)
    return not rank or not local_rank


def leave_out_mlflow() -> None:
    """Before DeepSpeed is imported, whose autotuner takes MLflow along where it is installed: 1.2 s and 116 MB a rank,
    and a library that talks to networks. To DeepSpeed it is not installed then."""
    sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]


def use_huge_pages() -> None:
    """Before torch's first tensor: those in the host's memory get pages of 2 MB where Linux gives them on request (its
    transparent_hugepage), so that a step on CPUs has far fewer page faults. THP_MEM_ALLOC_ENABLE=0 keeps small ones."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _record_collectives(config: TrainConfig) -> None:
    """NCCL's flight recorder, for the hang that it shows; torch reads these as it is imported, and no CPU run does."""
    os.environ.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(config.run_dir / "logs" / "nccl-trace-rank-"))


def _run(config: TrainConfig, ranks: RankEnvironment, console: Console, heartbeat: Heartbeat) -> int:
    try:
        inputs = _read_inputs(config, ranks)
        start = _start_point(config, inputs) if ranks.is_first else None
        from launch.trainer.attempt import run_attempt

        return run_attempt(config, ranks, console, inputs, start, heartbeat)
    except (CheckpointError, ConfigError, DatasetError, TrainingError) as error:
        console.user_error(error)
        code = 2
    except ReplicaError as error:
        console.user_error(error)
        code = 1
    except StoreUnreachableError as error:
        console.alarm(f"rank {ranks.rank}: {error}")
        code = 1
    except OSError as error:
        code = console.os_error(error)
    except Exception as error:
        console.defect(error)
        if is_lost_peer(error):
            time.sleep(FIRST_TO_END_S)
        code = 1
    # not sys.exit: threads and the process group of a run that failed may wait for ever
    os._exit(code)


def _read_inputs(config: TrainConfig, ranks: RankEnvironment) -> Inputs:
    """Raises DatasetError or TrainingError on rank 0; on another, which may be the only one that lacks a dataset, a
    LocalError where it has to tell it."""
    try:
        return read_inputs(config)
    except (DatasetError, TrainingError) as error:
        if ranks.is_first or not speaks(rank=ranks.rank, local_rank=ranks.local_rank):
            raise
        raise LocalError("\n".join(f"rank {ranks.rank}: {line}" for line in str(error).splitlines())) from error


def _start_point(config: TrainConfig, inputs: Inputs) -> StartPoint:
    """Rank 0 takes the folder and compares it with this start."""
    create_run_folder(config.run_dir)
    hold_lock(config.run_dir)
    return prepare_run(
        config,
        resolved=dump(config.model_copy(update={"allow_change": "none"})),
        previous=previous_config(config.run_dir, partial(load, schema=TrainConfig)),
        earlier=read_history(config.run_dir, partial(load, schema=TrainConfig)),
        inputs=inputs,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launch.train", description=__doc__)
    parser.add_argument("config", help="a YAML file such as configs/train/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimizer.learning_rate=1e-3")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher; the environment counts")
    return parser


def _end(code: int) -> NoReturn:
    """As `sys.exit`, but the interpreter is not taken down: a thread of the loader or the watchdog that comes back from
    C++ meanwhile would be ended inside it, which aborts a process whose run has finished (seen: SIGABRT, «terminate
    called without an active exception»)."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _end(main())
