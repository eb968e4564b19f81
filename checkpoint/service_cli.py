"""The verbs of retention, publishing and the service itself: serve, prune, pin, unpin, evaluate, publish."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from checkpoint.config import ServiceConfig
from checkpoint.export_folder import describe_proof, list_exports
from checkpoint.lease import hold_lease
from checkpoint.loss_curve import CURVE_FILE
from checkpoint.manifest import CheckpointError, checkpoint_directory, list_steps
from checkpoint.mlflow_connection import public_uri
from checkpoint.pins import pin, unpin
from checkpoint.run_record import read_run

if TYPE_CHECKING:
    from checkpoint.retention import Decision
    from checkpoint.service import Service
    from checkpoint.status import ServiceStatus

logger = logging.getLogger(__name__)

AddVerb = Callable[..., argparse.ArgumentParser]
LoadConfig = Callable[..., ServiceConfig]


class _Stopped(BaseException):
    """SIGTERM: what is under way is abandoned, and the next service does it again."""


def add_service_verbs(verbs: object, add_verb: AddVerb, load_config: LoadConfig) -> None:
    """Adds the verbs to the room's parser. `load_config(arguments, overrides)` reads the config of a verb."""
    prune = add_verb(
        verbs,
        "prune",
        "delete the checkpoints that retention does not keep, and say of each why",
        lambda arguments: _prune(arguments, load_config(arguments)),
        example="prune runs/demo --dry-run retention.keep_last=3 retention.keep_best=2",
    )
    prune.add_argument("--dry-run", action="store_true", help="decide and explain, and delete nothing")
    _add_config(prune)
    for name, purpose, act in (
        ("pin", "keep a checkpoint for ever, whatever retention says", pin),
        ("unpin", "let retention decide on a checkpoint again", unpin),
    ):
        verb = add_verb(verbs, name, purpose, _pinning(act), example=f"{name} runs/demo --step 400")
        verb.add_argument("--step", type=int, required=True, metavar="N")
    evaluate = add_verb(
        verbs,
        "evaluate",
        "perplexity on datasets and tasks of lm-eval, for the card and for MLflow",
        lambda arguments: _evaluate(arguments, load_config(arguments)),
        example="evaluate runs/demo evaluation.datasets.web=data/web evaluation.lm_eval_tasks=[arc_easy]",
    )
    evaluate.add_argument("--step", type=int, default=None, metavar="N", help="default: the newest proven one")
    _add_config(evaluate)
    publish = add_verb(
        verbs,
        "publish",
        "copy a proven export to a folder, an S3-compatible store or the Hugging Face hub",
        _publish,
        example="publish runs/demo --step 400 --to s3://models/smollm2",
    )
    publish.add_argument("--step", type=int, default=None, metavar="N", help="default: the newest proven one")
    publish.add_argument("--to", required=True, metavar="URL", help="/a/folder, s3://BUCKET/PREFIX or hf://OWNER/NAME")
    serve = add_verb(
        verbs,
        "serve",
        "the service: ship events to MLflow, verify, export, prove, prune, publish; a status page",
        lambda arguments: _serve(arguments, load_config),
        example="serve --once runs",
    )
    serve.add_argument(
        "--once", action="store_true", help="do what is to be done, tell it, exit 1 if anything is wrong"
    )
    serve.add_argument("--tracking-uri", metavar="URI", help="MLflow (default: sqlite:///RUNS_DIR/mlflow.db)")
    _add_config(serve)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys that replace the config's")
    parser.add_argument("--config", metavar="FILE", help="YAML, as in configs/service/ (default: default.yaml there)")


def _prune(arguments: argparse.Namespace, config: ServiceConfig) -> int:
    from checkpoint.prune import plan, prune

    run: Path = arguments.run_directory
    if config.retention is None:
        raise CheckpointError(
            "no rule says what to keep; give one, such as retention.keep_last=3, or a config with `retention:`"
        )
    list_training_steps(run)
    if arguments.dry_run:
        decisions = plan(run, config)
        _print_decisions(decisions, deleted=[one.step for one in decisions if not one.is_kept], verb="would delete")
    else:
        pruned = prune(run, config)
        _print_decisions(pruned.decisions, deleted=pruned.deleted, verb="deleted")
    return 0


def _print_decisions(decisions: Sequence[Decision], *, deleted: Sequence[int], verb: str) -> None:
    if decisions:
        print(f"{'step':>10} {'size':>10}  {'':6}  why")
    for one in decisions:
        told = "keep" if one.is_kept else "delete"
        print(f"{one.step:>10} {one.size_bytes / 1e6:>7,.0f} MB  {told:6}  {', '.join(one.reasons)}")
        if not one.is_kept and one.step not in deleted:
            print(f"{'':>22}  left: somebody began to read it, or pinned it")
    freed_mb = sum(one.size_bytes for one in decisions if one.step in deleted) / 1e6
    print(f"{verb} {len(deleted)} of {len(decisions)} checkpoints, {freed_mb:,.0f} MB")


def list_training_steps(run: Path) -> list[int]:
    """Raises CheckpointError if the folder is not that of a training run."""
    record = read_run(run)
    if record.kind == "data":
        raise CheckpointError(f"{run} is a data run, which makes no checkpoints; it made {record.dataset}")
    return list_steps(run)


def _pinning(act: Callable[[Path, int], None]) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        list_training_steps(arguments.run_directory)
        act(arguments.run_directory, arguments.step)
        return 0

    return run


def _publish(arguments: argparse.Namespace) -> int:
    from checkpoint.publish import publish_export

    run: Path = arguments.run_directory
    done = publish_export(run, _proven_step(run, arguments.step), arguments.to)
    print(f"published {done.location}: {done.sent} files sent, {done.found} were there; latest is step {done.latest}")
    return 0


def _evaluate(arguments: argparse.Namespace, config: ServiceConfig) -> int:
    if config.evaluation is None:
        raise CheckpointError(
            "nothing says what to measure; give evaluation.datasets.NAME=FOLDER or evaluation.lm_eval_tasks=[TASK], or "
            "a config with `evaluation:`"
        )
    from checkpoint.evaluate import evaluate_export
    from checkpoint.export import renew_model_card

    run: Path = arguments.run_directory
    step = _proven_step(run, arguments.step)
    evaluation = evaluate_export(run, step, config.evaluation)
    renew_model_card(run, step, license_name=config.license)
    for name, value in evaluation.metrics.items():
        print(f"{name:<40} {value:.6g}")
    return 0


def _proven_step(run: Path, step: int | None) -> int:
    """The step that the user names, or the newest with a proven export."""
    list_training_steps(run)
    if step is not None:
        return step
    proven = [number for number, export in list_exports(run)[0].items() if export.passed]
    if not proven:
        raise CheckpointError(f"{run} has no proven export yet; `smollm2 checkpoint export {run}` makes one")
    return proven[-1]


def _serve(arguments: argparse.Namespace, load_config: LoadConfig) -> int:
    from checkpoint.service import Service, find_runs

    folder: Path = arguments.run_directory
    # a single pass shows what there is now
    overrides = ["redraw_seconds=0"] if arguments.once else []
    overrides += [f"tracking_uri={arguments.tracking_uri}"] if arguments.tracking_uri else []
    config = load_config(arguments, overrides)
    if arguments.once and not find_runs(folder):
        raise CheckpointError(
            f"{folder} holds no run folder (none with run.json); `smollm2 launch train` makes one, and so does "
            "`smollm2 pipeline run` with run_dir"
        )
    signal.signal(signal.SIGTERM, _stop)
    try:
        with hold_lease(folder):
            service = Service(folder, config)
            if arguments.once:
                return _summarize(service.run_until_done(), folder, service.tracking_uri)
            return _watch(service)
    except _Stopped:
        logger.info("stopped")
        # to watch until the signal is the watcher's whole job; a single pass was cut short
        return 128 + signal.SIGTERM if arguments.once else 0
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise
    except OSError as error:
        if arguments.once:
            raise
        # a full disk, a file server that is away: 2 would tell systemd not to try again
        logger.error("smollm2 checkpoint: the service could not begin in %s: %s; start it again", folder, error)
        return 1


def _watch(service: Service) -> int:
    from checkpoint.web.server import PageServer

    config = service.config
    uri = public_uri(service.tracking_uri)
    logger.info("watching %s, every %g s; MLflow: %s", service.runs_directory, config.poll_seconds, uri)
    with PageServer(service) as page:
        logger.info("status page: %s", page.url)
        service.run_forever()
    return 0


def _stop(signal_number: int, frame: FrameType | None) -> None:
    raise _Stopped


def _summarize(status: ServiceStatus, folder: Path, tracking_uri: str) -> int:
    from checkpoint.service import find_runs

    places = {place.resolve().name: place for place in find_runs(folder)}
    for told in status.runs:
        run = places.get(told.name)
        if run is None:
            continue  # it has vanished since
        print(run)
        if told.kind == "data":
            print(f"  dataset     {told.dataset}")
            continue
        steps, exports = list_steps(run), list(list_exports(run)[0].values())
        print(f"  checkpoint  {checkpoint_directory(run, steps[-1]) if steps else 'none yet'}")
        if exports:
            print(f"  export      {exports[-1].directory}")
            print(f"  proof       {describe_proof(exports[-1])}")
        print(f"  loss curve  {run / CURVE_FILE if (run / CURVE_FILE).is_file() else 'none yet'}")
    for problem in status.problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(f"open MLflow:  {_mlflow_command(tracking_uri)}")
    return int(bool(status.problems))


def _mlflow_command(tracking_uri: str) -> str:
    tracking_uri = public_uri(tracking_uri)
    if tracking_uri.startswith(("http://", "https://")):
        return tracking_uri
    program = Path(sys.executable).with_name("mlflow")
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return f"{program} ui --backend-store-uri {tracking_uri}"
