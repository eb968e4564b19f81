"""The verbs of `smollm2 launch` for what comes before a run on a cluster: plan, preflight, render."""

from __future__ import annotations

import argparse
import importlib.resources
import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

from configs.load import ConfigError, dump, load
from launch.cluster.devices import DEVICES
from launch.cluster.plan import WORLD_SIZES, Assumptions, divisible, plan
from launch.cluster.plan_table import as_json, format_table
from launch.cluster.recommendation import recommend, trainable_stages
from launch.cluster.render import KUBERNETES_MEMORY_GIB, Shape, check_shape, render_kubernetes, render_slurm
from launch.config import TrainConfig, TrainingError


def add_cluster_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_plan(verbs)
    _add_preflight(verbs)
    _add_render(verbs)


def _add_plan(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "plan",
        help="memory a GPU, seconds a step, days and what to take, before anything is started",
        description="Print what a run takes on GPUs by its config alone: memory a GPU by part, bytes sent, seconds a "
        "step and days, for each ZeRO stage, mode of activation checkpointing and world size; and which stage, "
        "micro-batch and mode to take, and why. MFU and bandwidth are assumptions of yours.",
        epilog="example: smollm2 launch plan configs/train/smollm2-1.7b.yaml --device h100 --mfu 0.4 --bandwidth 50",
    )
    _add_config(verb, "micro_batch_size=8")
    assumed = Assumptions()
    verb.add_argument("--device", default=assumed.device, help=f"one of {', '.join(DEVICES)} (default: %(default)s)")
    verb.add_argument(
        "--mfu",
        type=_fraction,
        default=assumed.mfu,
        help="model FLOPs utilisation while computing (default: %(default)s)",
    )
    verb.add_argument(
        "--bandwidth",
        type=_positive,
        default=assumed.bandwidth_bytes_per_s / 1e9,
        metavar="GB/S",
        help="what a GPU sends to others, in GB a second: 50 for a 400 Gbit/s port each (default: %(default)g)",
    )
    verb.add_argument(
        "--tokens", type=_tokens, metavar="N", help="the budget, such as 2e12 (default: the config's steps)"
    )
    verb.add_argument(
        "--world-sizes",
        type=_world_sizes,
        metavar="N,N",
        help=f"numbers of GPUs (default: those of {', '.join(map(str, WORLD_SIZES))} over which the batch divides)",
    )
    verb.add_argument(
        "--all",
        action="store_true",
        help="also the rows of DeepSpeed's other stages, hpZ and offload",
    )
    verb.add_argument("--json", action="store_true", help="print all figures as one JSON object, sizes in bytes")
    verb.set_defaults(run=_plan)


def _add_config(verb: argparse.ArgumentParser, example: str) -> None:
    verb.add_argument("config", type=Path, help="a YAML file such as configs/train/smollm2-135m.yaml")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help=f"for example {example}")


def _plan(arguments: argparse.Namespace) -> int:
    config = load(arguments.config, TrainConfig, arguments.overrides)
    assumptions = Assumptions(
        device=arguments.device,
        mfu=arguments.mfu,
        bandwidth_bytes_per_s=arguments.bandwidth * 1e9,
        tokens=None if arguments.tokens is None else int(arguments.tokens),
    )
    world_sizes = arguments.world_sizes or divisible(config, WORLD_SIZES)
    stages = trainable_stages(config)
    rows = plan(config, assumptions, world_sizes=world_sizes)
    recommended = [recommend(config, assumptions, world_size=size, stages=stages) for size in world_sizes]
    if arguments.json:
        print(json.dumps(as_json(config, assumptions, rows, recommended), indent=2))
    else:
        taken = {str(stage) for stage in stages}
        shown = rows if arguments.all else [row for row in rows if row.zero in taken]
        print(format_table(config, assumptions, shown, recommended, left_out=len(rows) - len(shown)))
    return 0


def _add_render(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "render",
        help="a Slurm script or a Kubernetes manifest for a run",
        description="Write a job for a cluster's scheduler, as text that you can read and change.",
        epilog="example: smollm2 launch render slurm configs/train/smollm2-135m.yaml --nodes 4 --output job.sh",
    )
    verb.add_argument("scheduler", choices=("slurm", "kubernetes"), help="slurm or kubernetes")
    _add_config(verb, "run_dir=runs/one")
    shape = Shape()
    for option, default in {
        "nodes": shape.nodes,
        "gpus-per-node": shape.gpus_per_node,
        "cpus-per-node": shape.cpus_per_node,
    }.items():
        verb.add_argument(f"--{option}", type=_whole, default=default, metavar="N", help="default: %(default)s")
    verb.add_argument(
        "--memory-gib",
        type=_whole,
        metavar="N",
        help=f"of a node (default: {KUBERNETES_MEMORY_GIB} for Kubernetes, all that the node has for Slurm)",
    )
    verb.add_argument("--time", default=shape.time_limit, metavar="LIMIT", help="Slurm's (default: %(default)s)")
    verb.add_argument("--image", default="smollm2:latest", help="Kubernetes' (default: %(default)s)")
    verb.add_argument("--claim", default="smollm2", help="the volume that all pods share (default: %(default)s)")
    verb.add_argument("--output", type=Path, metavar="FILE", help="where to write it (default: the screen)")
    verb.set_defaults(run=_render)


def _render(arguments: argparse.Namespace) -> int:
    config = load(arguments.config, TrainConfig, arguments.overrides)
    shape = Shape(
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        cpus_per_node=arguments.cpus_per_node,
        memory_gib=arguments.memory_gib,
        time_limit=arguments.time,
    )
    check_shape(config, shape, scheduler=arguments.scheduler)
    if arguments.scheduler == "slurm":
        template = importlib.resources.files("configs").joinpath("cluster/slurm.sh").read_text(encoding="utf-8")
        text = render_slurm(template, config, arguments.config, arguments.overrides, shape)
    else:
        text = render_kubernetes(config, dump(config), shape, image=arguments.image, claim=arguments.claim)
    if arguments.output is None:
        print(text, end="")
    else:
        arguments.output.write_text(text, encoding="utf-8")
    return 0


def _add_preflight(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "preflight",
        help="what would fail later, found now: nodes, data, disk, network, memory",
        description="Look at every node that a run would use, at its data, its folder and the weights that it begins "
        "with, and run its largest micro-batch on all ranks. Prints all problems at once, each with its fix; exit "
        "code 1 if there is any.",
        epilog="example: smollm2 launch preflight configs/train/smollm2-135m.yaml launcher.hostfile=hosts",
    )
    _add_config(verb, "launcher.hostfile=hosts")
    verb.add_argument(
        "--keep", type=_whole, default=2, metavar="N", help="checkpoints that must fit at once (default: %(default)s)"
    )
    verb.add_argument(
        "--timeout", type=_positive, default=300.0, metavar="SECONDS", help="for the trial (default: %(default)g)"
    )
    verb.add_argument("--allow-change", choices=["data"], help="as for launch train: changed data is no problem")
    verb.add_argument("--json", action="store_true", help="print the findings as a JSON list")
    verb.set_defaults(run=_preflight)


def _preflight(arguments: argparse.Namespace) -> int:
    from launch.cluster.process import usable_device_count
    from launch.preflight.findings import format_findings, problems
    from launch.preflight.preflight import preflight

    allowed = [] if arguments.allow_change is None else [f"allow_change={arguments.allow_change}"]
    config = load(arguments.config, TrainConfig, [*arguments.overrides, *allowed])
    findings = preflight(
        config,
        read_config=_read_config,
        environment=os.environ,
        device_count=usable_device_count(os.environ),
        core_count=os.cpu_count() or 1,
        kept=arguments.keep,
        trial_timeout_s=arguments.timeout,
        say=lambda line: print(line, file=sys.stderr),
    )
    print(json.dumps([asdict(finding) for finding in findings]) if arguments.json else format_findings(findings))
    return 1 if problems(findings) else 0


def _read_config(path: Path) -> TrainConfig:
    try:
        return load(path, TrainConfig)
    except ConfigError as error:
        raise TrainingError(str(error)) from None


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, such as 50")
    return number


def _tokens(text: str) -> float:
    try:
        return _positive(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens above 0, such as 2e12") from None


def _fraction(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1, such as 0.4")
    return number


def _world_sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers of GPUs, such as 8,16")
    return [int(part) for part in parts]
