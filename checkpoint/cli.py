"""`smollm2 checkpoint VERB`: list, verify, consolidate, export, prove, reshard, serve."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from checkpoint.export_folder import Export, find_export
from checkpoint.manifest import (
    CheckpointError,
    checkpoint_directory,
    list_steps,
    read_manifest,
    step_name,
    verify_checkpoint,
)
from checkpoint.reshard import add_reshard_verb
from checkpoint.run_record import read_run
from checkpoint.tracking import TrackingError
from configs.command import CommandParser, run_room

if TYPE_CHECKING:
    from checkpoint.service import RunReport

logger = logging.getLogger(__name__)


class _Stopped(BaseException):
    """SIGTERM: what is under way is abandoned, and the next service does it again."""


def main() -> int:
    """Entry point of the room's command."""
    return run_room(build_parser(), user_errors=(CheckpointError, TrackingError))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the room; each verb sets `run`."""
    parser: argparse.ArgumentParser = CommandParser(
        prog="smollm2 checkpoint",
        description="What happens to a checkpoint after the trainer has written it.",
        epilog="example: smollm2 checkpoint serve --once runs",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    _add_verb(verbs, "list", "the complete checkpoints of a run", _list, example="list runs/demo")

    verify = _add_verb(
        verbs,
        "verify",
        "read and hash every file again; exit 1 names the bad ones",
        _verify,
        example="verify runs/demo",
    )
    verify.add_argument("--step", default=None, metavar="N|all", help="a step, or all (default: the newest)")

    consolidate = _add_verb(
        verbs,
        "consolidate",
        "weights as safetensors under the names they have in training, for any use but Hugging Face",
        _consolidate,
        example="consolidate runs/demo --output weights --dtype float32",
    )
    _add_step(consolidate)
    consolidate.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder that does not exist")
    _add_dtype(consolidate)

    export = _add_verb(
        verbs, "export", "a proven Hugging Face directory, RUN/exports/step-…", _export, example="export runs/demo"
    )
    _add_step(export)
    _add_dtype(export)

    prove = _add_verb(
        verbs, "prove", "load an export with transformers again and compare the loss", _prove, example="prove runs/demo"
    )
    _add_step(prove)
    add_reshard_verb(partial(_add_verb, verbs), _step_of)
    _add_serve(verbs)
    return parser


def _add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    purpose: str,
    run: Callable[[argparse.Namespace], int],
    *,
    example: str,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=purpose, description=purpose, epilog=f"example: smollm2 checkpoint {example}")
    parser.set_defaults(run=run)
    if name != "serve":
        parser.add_argument("run_directory", type=Path, metavar="RUN", help="a run folder, as the trainer makes it")
    return parser


def _add_step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=int, default=None, metavar="N", help="default: the newest")


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=None, help="default: the training's")


def _add_serve(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = _add_verb(
        verbs,
        "serve",
        "the service: ship events to MLflow, verify, export, prove and log checkpoints",
        _serve,
        example="serve --once runs",
    )
    serve.add_argument("runs_directory", type=Path, metavar="RUNS_DIR", help="a folder of run folders, or one of them")
    serve.add_argument("--once", action="store_true", help="one pass, a summary, exit 1 if anything is wrong")
    serve.add_argument("--every", action="store_true", help="export every checkpoint (default: the newest of a pass)")
    serve.add_argument("--tracking-uri", metavar="URI", help="MLflow (default: sqlite:///RUNS_DIR/mlflow.db)")
    serve.add_argument("--poll-seconds", type=_positive, default=30.0, metavar="S", help="between passes (default: 30)")


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _list(arguments: argparse.Namespace) -> int:
    run: Path = arguments.run_directory
    steps = _steps_of(run)
    if not steps:
        print(f"{run} has no complete checkpoint yet")
        return 0
    print(f"{'step':>10} {'tokens':>15} {'ranks':>5} {'dtype':<9} {'size':>9} {'validation':>10}  export")
    for step in steps:
        try:
            print(_describe_checkpoint(run, step))
        except CheckpointError as error:
            print(f"{step:>10} {error}")
    return 0


def _describe_checkpoint(run: Path, step: int) -> str:
    manifest = read_manifest(checkpoint_directory(run, step))
    loss = "-" if manifest.validation_loss is None else f"{manifest.validation_loss:.4f}"
    size_mb = sum(file.size_bytes for file in manifest.files) / 1e6
    export = find_export(run, step)
    told = "-" if export is None else f"proof {export.proof.verdict}"
    return (
        f"{step:>10} {manifest.tokens_consumed:>15,} {manifest.world_size:>5} {manifest.dtype:<9} "
        f"{size_mb:>6,.0f} MB {loss:>10}  {told}"
    )


def _verify(arguments: argparse.Namespace) -> int:
    run: Path = arguments.run_directory
    steps = _steps_of(run) if arguments.step == "all" else [_step_of(run, arguments.step)]
    bad = False
    for step in steps:
        checkpoint = checkpoint_directory(run, step)
        problems = verify_checkpoint(checkpoint)
        for problem in problems:
            bad = True
            print(f"{step_name(step)}: {problem}")
        if not problems:
            files = read_manifest(checkpoint).files
            print(f"{step_name(step)}: whole ({len(files)} files, {sum(file.size_bytes for file in files):,} bytes)")
    return int(bad)


def _steps_of(run: Path) -> list[int]:
    """Raises CheckpointError if the folder is not that of a training run."""
    record = read_run(run)
    if record.kind == "data":
        raise CheckpointError(f"{run} is a data run, which makes no checkpoints; it made {record.dataset}")
    return list_steps(run)


def _step_of(run: Path, wanted: int | str | None) -> int:
    """The step that the user names, or the newest. Raises CheckpointError if there is none such."""
    steps = _steps_of(run)
    if not steps:
        raise CheckpointError(f"{run} has no complete checkpoint yet; the trainer has not saved one")
    if wanted is None:
        return steps[-1]
    if not str(wanted).isdecimal() or int(wanted) not in steps:
        raise CheckpointError(f"{run} has no checkpoint of step {wanted}; it has {', '.join(map(str, steps[-8:]))}")
    return int(wanted)


def _consolidate(arguments: argparse.Namespace) -> int:
    from checkpoint.consolidate import as_dtype, consolidate_checkpoint

    run: Path = arguments.run_directory
    step = _step_of(run, arguments.step)
    dtype = as_dtype(arguments.dtype or read_manifest(checkpoint_directory(run, step)).dtype)
    written = consolidate_checkpoint(run, step, arguments.output, dtype=dtype)
    print(f"{arguments.output}: {written.total_parameters:,} parameters in {dtype}, {written.total_bytes:,} bytes")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from checkpoint.export import export_checkpoint

    run: Path = arguments.run_directory
    return _tell(export_checkpoint(run, _step_of(run, arguments.step), dtype=arguments.dtype))


def _prove(arguments: argparse.Namespace) -> int:
    from checkpoint.export import prove_export

    run: Path = arguments.run_directory
    return _tell(prove_export(run, _step_of(run, arguments.step)))


def _tell(export: Export) -> int:
    print(f"export  {export.directory}")
    print(f"proof   {describe_proof(export)}")
    return 0 if export.passed else 1


def describe_proof(export: Export) -> str:
    """The verdict with its numbers, or with the reasons why it failed."""
    proof = export.proof
    if not export.passed:
        return f"failed: {'; '.join(proof.reasons)}"
    return (
        f"passed: loss on the probe batch {proof.got:.4f} in transformers, {proof.expected:.4f} in the trainer, "
        f"difference {abs(proof.difference or 0.0):.6f} (at most {proof.tolerance})"
    )


def _serve(arguments: argparse.Namespace) -> int:
    from checkpoint.lock import exclusive_lock
    from checkpoint.service import Service, ServiceSettings, find_runs

    folder: Path = arguments.runs_directory
    if not find_runs(folder) and arguments.once:
        raise CheckpointError(
            f"{folder} holds no run folder (none with run.json); `smollm2 launch train` makes one, and so does "
            "`smollm2 pipeline run` with run_dir"
        )
    settings = ServiceSettings(
        runs_directory=folder,
        tracking_uri=arguments.tracking_uri,
        poll_seconds=arguments.poll_seconds,
        every=arguments.every,
        **({"redraw_seconds": 0.0} if arguments.once else {}),
    )
    signal.signal(signal.SIGTERM, _stop)
    try:
        with exclusive_lock(folder / ".service.lock", busy=f"another service is at work in {folder}; end it first"):
            service = Service(settings)
            if arguments.once:
                return _summarize(service.run_pass(), service.tracking_uri)
            logger.info("watching %s, every %g s; MLflow: %s", folder, settings.poll_seconds, service.tracking_uri)
            service.run_forever()
    except _Stopped:
        logger.info("stopped")
        # to watch until the signal is the watcher's whole job; a single pass was cut short
        return 128 + signal.SIGTERM if arguments.once else 0
    return 0


def _stop(signal_number: int, frame: FrameType | None) -> None:
    raise _Stopped


def _summarize(reports: list[RunReport], tracking_uri: str) -> int:
    for report in reports:
        print(report.run)
        if report.kind == "data":
            print(f"  dataset     {report.dataset}")
            continue
        print(f"  checkpoint  {report.checkpoint or 'none yet'}")
        if report.exports:
            print(f"  export      {report.exports[-1].directory}")
            print(f"  proof       {describe_proof(report.exports[-1])}")
        print(f"  loss curve  {report.loss_curve or 'none yet'}")
    problems = [problem for report in reports for problem in report.problems]
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(f"open MLflow:  {_mlflow_command(tracking_uri)}")
    return int(bool(problems))


def _mlflow_command(tracking_uri: str) -> str:
    if tracking_uri.startswith(("http://", "https://")):
        return tracking_uri
    program = Path(sys.executable).with_name("mlflow")
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return f"{program} ui --backend-store-uri {tracking_uri}"
