"""`smollm2 checkpoint VERB`: list, verify, consolidate, export, prove, reshard; the service's: `service_cli.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import configs
from checkpoint.config import ServiceConfig
from checkpoint.export_folder import Export, describe_proof, find_export
from checkpoint.manifest import (
    CheckpointError,
    checkpoint_directory,
    read_manifest,
    step_name,
    verify_checkpoint,
)
from checkpoint.reading import hold_checkpoint
from checkpoint.reshard import add_reshard_verb
from checkpoint.service_cli import add_service_verbs, list_training_steps
from configs.command import CommandParser, run_room
from configs.load import load


def main() -> int:
    """Entry point of the room's command."""
    return run_room(build_parser(), user_errors=(CheckpointError,))


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
        "weights as safetensors under the names they have in training, for any use but Hugging Face; RUN may be a "
        "Universal Checkpoint of DeepSpeed too",
        _consolidate,
        example="consolidate runs/demo --output weights --dtype float32",
    )
    _add_step(consolidate)
    consolidate.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder that does not exist")
    _add_dtype(consolidate)
    consolidate.add_argument("--optimizer", action="store_true", help="AdamW's moments too, in float32")

    export = _add_verb(
        verbs, "export", "a proven Hugging Face directory, RUN/exports/step-…", _export, example="export runs/demo"
    )
    _add_step(export)
    _add_dtype(export)
    export.add_argument("--license", metavar="ID", help="for the model card, as the hub spells it: apache-2.0")

    prove = _add_verb(
        verbs, "prove", "load an export with transformers again and compare the loss", _prove, example="prove runs/demo"
    )
    _add_step(prove)
    add_reshard_verb(partial(_add_verb, verbs), _step_of)
    add_service_verbs(verbs, _add_verb, _load_config)
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
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="a run folder, as the trainer makes it")
    return parser


def _add_step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=int, default=None, metavar="N", help="default: the newest")


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=None, help="default: the training's")


def _load_config(arguments: argparse.Namespace, overrides: Sequence[str] = ()) -> ServiceConfig:
    default = Path(configs.__file__).parent / "service" / "default.yaml"
    return load(arguments.config or default, ServiceConfig, [*overrides, *arguments.overrides])


def _list(arguments: argparse.Namespace) -> int:
    run: Path = arguments.run_directory
    steps = list_training_steps(run)
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
    steps = list_training_steps(run) if arguments.step == "all" else [_step_of(run, arguments.step)]
    bad = False
    for step in steps:
        checkpoint = checkpoint_directory(run, step)
        with hold_checkpoint(checkpoint):
            problems = verify_checkpoint(checkpoint)
        for problem in problems:
            bad = True
            print(f"{step_name(step)}: {problem}")
        if not problems:
            files = read_manifest(checkpoint).files
            print(f"{step_name(step)}: whole ({len(files)} files, {sum(file.size_bytes for file in files):,} bytes)")
    return int(bad)


def _step_of(run: Path, wanted: int | str | None) -> int:
    """The step that the user names, or the newest. Raises CheckpointError if there is none such."""
    steps = list_training_steps(run)
    if not steps:
        raise CheckpointError(f"{run} has no complete checkpoint yet; the trainer has not saved one")
    if wanted is None:
        return steps[-1]
    if not str(wanted).isdecimal() or int(wanted) not in steps:
        raise CheckpointError(f"{run} has no checkpoint of step {wanted}; it has {', '.join(map(str, steps[-8:]))}")
    return int(wanted)


def _consolidate(arguments: argparse.Namespace) -> int:
    from checkpoint.consolidate import as_dtype, consolidate_checkpoint
    from checkpoint.universal import consolidate_universal, is_universal

    run: Path = arguments.run_directory
    if is_universal(run):
        dtype = as_dtype(arguments.dtype or "float32")
        written = consolidate_universal(run, arguments.output, dtype=dtype, moments=arguments.optimizer)
    else:
        step = _step_of(run, arguments.step)
        dtype = as_dtype(arguments.dtype or read_manifest(checkpoint_directory(run, step)).dtype)
        with hold_checkpoint(checkpoint_directory(run, step)):
            written = consolidate_checkpoint(run, step, arguments.output, dtype=dtype, moments=arguments.optimizer)
    print(f"{arguments.output}: {written.total_parameters:,} parameters in {dtype}, {written.total_bytes:,} bytes")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from checkpoint.export import export_checkpoint

    run: Path = arguments.run_directory
    step = _step_of(run, arguments.step)
    with hold_checkpoint(checkpoint_directory(run, step)):
        made = export_checkpoint(run, step, dtype=arguments.dtype, license_name=arguments.license)
    return _tell(made)


def _prove(arguments: argparse.Namespace) -> int:
    from checkpoint.export import prove_export

    run: Path = arguments.run_directory
    return _tell(prove_export(run, _step_of(run, arguments.step)))


def _tell(export: Export) -> int:
    print(f"export  {export.directory}")
    print(f"proof   {describe_proof(export)}")
    return 0 if export.passed else 1
