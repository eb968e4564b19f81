"""`smollm2 launch VERB`: argparse, and nothing that takes a second to import before a verb is chosen."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from checkpoint.events import CONFIG_FILE, read_run
from checkpoint.manifest import CheckpointError, checkpoint_directory, list_steps, verify_checkpoint
from configs.command import CommandParser, run_room
from configs.load import load
from launch.cluster.cli import add_cluster_verbs
from launch.cluster.hostfile import HostfileError
from launch.cluster.launcher import LauncherError
from launch.cluster.slurm import SlurmError
from launch.config import TrainConfig, TrainingError
from launch.data.object_store import StoreUnreachableError
from launch.generate import GenerateError, add_generate_verb
from launch.trace_report import format_document, format_step, trace_document, trace_step
from launch.trainer.data_history import Period, read_history
from launch.trainer.inputs import check_init_from, read_inputs
from launch.trainer.lock import refuse_if_at_work
from launch.trainer.rewinds import read_rewinds
from launch.trainer.run_folder import check_same_run, create_run_folder, previous_config, settle_finished_run
from pipeline.shards.format import DatasetError

USER_ERRORS = (TrainingError, DatasetError, CheckpointError, LauncherError, HostfileError, SlurmError, GenerateError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes as `run_room` has them; 1 for a store that does not answer, as of a run that it ends."""
    try:
        return run_room(build_parser(), user_errors=USER_ERRORS, arguments=arguments)
    except StoreUnreachableError as error:
        print(f"smollm2 launch: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = CommandParser(
        prog="smollm2 launch",
        description="Train with DeepSpeed ZeRO-3: on this machine, on a hostfile's hosts, in a Slurm allocation.",
        epilog="example: smollm2 launch train configs/train/demo.yaml optimizer.learning_rate=1e-3",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_train(verbs)
    _add_trace(verbs)
    add_cluster_verbs(verbs)
    add_generate_verb(verbs)
    return parser


def _add_train(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = verbs.add_parser(
        "train",
        help="train, or go on with a run, from a config",
        description="Start DeepSpeed's launcher on launch.train. A run that was stopped goes on from its newest whole "
        "checkpoint. SIGINT, SIGTERM and SIGUSR1 end it after the current step with a checkpoint (exit codes 130, 143, "
        "138); docs/operations.md has all exit codes.",
        epilog="example: smollm2 launch train configs/train/demo.yaml steps=100 run_dir=runs/short\n"
        "by hand: deepspeed --num_gpus 2 --module launch.train configs/train/demo.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", type=Path, help="a YAML file such as configs/train/demo.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimizer.learning_rate=1e-3")
    train.add_argument(
        "--max-restarts",
        type=_count,
        default=0,
        metavar="N",
        help="start again up to N times after a crash or a hang, and not after a mistake of yours (default: 0)",
    )
    train.add_argument(
        "--allow-change",
        choices=["data"],
        help="let a resume change its datasets or their mixture; each change is told, and goes into the run's history",
    )
    train.set_defaults(run=_train)


def _add_trace(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "trace",
        help="which documents a step reads, and which steps read a document",
        description="List the samples of a step of a run, past or to come: source, epoch, shard and documents. Or, the "
        "other way round, the steps that see a document. Reads the run's config and its datasets, nothing else.",
        epilog="example: smollm2 launch trace runs/demo --step 31",
    )
    verb.add_argument("run_dir", type=Path, metavar="RUN", help="a run's folder")
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, metavar="N", help="a step, counted from 1")
    what.add_argument("--document", metavar="ID", help="a document_id; reads the ids of all documents")
    verb.add_argument("--json", action="store_true", help="print one JSON object")
    verb.set_defaults(run=_trace)


def _trace(arguments: argparse.Namespace) -> int:
    run = arguments.run_dir
    record, config = read_run(run), load(run / CONFIG_FILE, TrainConfig)
    earlier = read_history(run, partial(load, schema=TrainConfig))
    periods = [*earlier, Period(config.steps, config, record.dataset_digests)]
    if arguments.step is not None:
        trace, text = trace_step(periods, arguments.step, read_rewinds(run)), format_step
    else:
        trace, text = trace_document(periods, arguments.document, read_rewinds(run)), format_document
    print(json.dumps(trace) if arguments.json else text(trace))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of restarts, such as 10")
    return int(text)


def _train(arguments: argparse.Namespace) -> int:
    """Find what is wrong before any rank starts, then start them."""
    from launch.cluster.process import start_training
    from launch.cluster.supervisor import supervise

    overrides = list(arguments.overrides)
    if arguments.allow_change is not None:
        overrides.append(f"allow_change={arguments.allow_change}")
    config = load(arguments.config, TrainConfig, overrides)
    inputs = read_inputs(config)
    if config.launcher.ranks_per_node is not None and config.launcher.hostfile is None:
        # a lower bound: in an allocation there are more, and the ranks check again
        config.accumulation_steps(world_size=config.launcher.ranks_per_node)
    create_run_folder(config.run_dir)
    check_same_run(config, previous_config(config.run_dir, partial(load, schema=TrainConfig)), inputs)
    # hashed here only if it says that nothing is left to do: the ranks hash it before they go on from it
    step = max(list_steps(config.run_dir), default=0)
    if step >= config.steps and not verify_checkpoint(checkpoint_directory(config.run_dir, step)):
        print(settle_finished_run(config, step))
        return 0
    refuse_if_at_work(config.run_dir)
    if step == 0:
        check_init_from(config)
    start = partial(start_training, arguments.config, overrides, config.launcher, run_dir=config.run_dir)
    if not arguments.max_restarts:
        return start()
    return supervise(lambda wish: start(wish=wish), run_dir=config.run_dir, max_restarts=arguments.max_restarts)
