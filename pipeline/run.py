"""A pipeline run from sources to manifest, which goes on where an earlier attempt stopped.

Bytes of the shards depend on the config and the input only: not on the number of workers, nor on how often, when or
how hard the run was interrupted. The manifest tells besides which engine made the ids.
"""

from __future__ import annotations

import errno
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.append import NOTHING, Base, open_base, refuse_unfinished_append, require_finished, write_units
from pipeline.assembly import assemble
from pipeline.config import PipelineConfig, config_digest
from pipeline.deduplication.passes import deduplicate
from pipeline.document import PipelineError
from pipeline.encoding_pass import EncodingPass, workers_ahead
from pipeline.executors import workers_of_this_machine
from pipeline.filters import chain
from pipeline.left_out import left_out
from pipeline.next_version import take_next, where_next
from pipeline.plan import Plan, make_plan
from pipeline.run_events import RunEvents
from pipeline.sample import sample_in_processes, why_no_text
from pipeline.shards.format import (
    SPLITS,
    TOKENIZER_FILE,
    DatasetManifest,
    digest_bytes,
    read_manifest,
    split_directory,
    write_durably,
)
from pipeline.shuffled_run import run_shuffled
from pipeline.sources.code_header import tokens_of_headers
from pipeline.status import STATUS_FILE, RunStatus
from pipeline.tokenizer.encode import Encoder, read_tokenizer
from pipeline.tokenizer.train import TokenizerError, train_tokenizer
from pipeline.totals import add_up_units
from pipeline.unit import UnitRecord
from pipeline.worker_start import warm_up
from pipeline.workspace import CONFIG_FILE, Workspace, is_finished, only_run, require_same_config

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run made, or found made. `tokens` and `seconds` are this attempt's."""

    manifest: DatasetManifest
    was_finished: bool
    tokens: int
    seconds: float


def run(config: PipelineConfig, *, append: bool = False) -> RunResult:
    """Make the dataset `config.output_dir`, or as much of it as an earlier attempt has left.

    `append` makes the next version of a finished dataset, of input files that it does not hold yet.

    Raises PipelineError (a SourceError, TokenizerError or WorkerError among them) and OSError; what is done by then
    is kept, and the same call goes on from there.
    """
    with RunEvents(config) as events:

        def run_in_order(in_order: PipelineConfig) -> RunResult:
            result = _run(in_order, events)
            events.begin(goes_on=True)
            return result

        if config.shuffle_seed is not None:
            result = run_shuffled(config, run_in_order, append=append)
        else:
            result = _run(config, events, append=append)
        events.tell_dataset(result.manifest, seconds=result.seconds, was_finished=result.was_finished)
        return result


def _run(config: PipelineConfig, events: RunEvents, *, append: bool = False) -> RunResult:
    started = time.perf_counter()
    if append:
        require_finished(config.output_dir)
    if config.executor == "local":
        warm_up()
    with only_run(config.output_dir), naming_full_disk(config.output_dir):
        workspace = Workspace(config.output_dir)
        if is_finished(config.output_dir) and not append:
            manifest = check_finished(config, workspace)
            workspace.remove()
            return RunResult(manifest, was_finished=True, tokens=0, seconds=time.perf_counter() - started)
        if append:
            base = open_base(config, workspace)
        else:
            base = NOTHING
            workspace.forget_other_config(config)
            workspace.check_config(config)
        check_files(config)
        plan = base.plan_of_new_files(make_plan(config), config)
        if base.manifest is not None and not plan.units:
            workspace.remove()
            return RunResult(base.manifest, was_finished=True, tokens=0, seconds=time.perf_counter() - started)
        events.begin(
            goes_on=append or workspace.has_begun(),
            earlier=base.records.values(),
            reports_in=where_next(config.output_dir),
        )
        status_file = config.output_dir / STATUS_FILE
        with (
            workers_ahead(config) as template,
            RunStatus(status_file, name=config.name, executor=config.executor, tell=events.tell_progress) as status,
        ):
            workspace.remove_partials()
            encoder, content = prepare(config, plan, workspace, status, base=base)
            encoding = EncodingPass(
                config,
                plan,
                plan.units,
                workspace,
                encoder,
                status,
                started=started,
                earlier=base.records.values(),
                template=template,
            )
            records, tokens = encoding.run()
            status.enter_phase("assembly")
            seconds = time.perf_counter() - started
            manifest = publish(
                config, plan, records, encoder=encoder, tokenizer_content=content, base=base, seconds=seconds
            )
            workspace.remove_partials()
        workspace.remove()
        return RunResult(manifest, was_finished=False, tokens=tokens, seconds=seconds)


def prepare(
    config: PipelineConfig, plan: Plan, workspace: Workspace, status: RunStatus, *, base: Base = NOTHING
) -> tuple[Encoder, bytes]:
    """Record the plan, or compare it with that of an earlier attempt, and do what is done before all units.

    Gives the tokenizer and its content.
    """
    with workspace.setting_up():
        workspace.begin(config, plan)
        base.lend_tokenizer(workspace)
        base.lend_distrust(workspace)
        status.enter_phase("tokenizer")
        encoder, content = _tokenizer(config, plan, workspace)
        for token in tokens_of_headers(config.sources):
            encoder.special_id(token)
        if config.deduplication.is_on:
            status.enter_phase("deduplication")
            deduplicate(config, plan)
        # only now: what is refused before leaves no empty folder
        for split in SPLITS:
            split_directory(config.output_dir, split).mkdir(exist_ok=True)
    return encoder, content


def check_files(config: PipelineConfig) -> None:
    """Raises PipelineError for a file of a filter or a tokenizer that is missing: known at once, where listing the
    sources may take minutes."""
    chain.prepare(config.filters)
    if config.tokenizer.path is not None:
        read_tokenizer(config.tokenizer.path)


@contextmanager
def naming_full_disk(dataset: Path) -> Iterator[None]:
    """Says which disk is full where the failing write knew only a descriptor."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(dataset)) from None
        raise


def make_tokenizer(config: PipelineConfig, plan: Plan) -> bytes:
    """Train the tokenizer that the config asks for. Raises PipelineError if it asks for none."""
    training = config.tokenizer.train
    if training is None:
        raise PipelineError(
            f"tokenizer.path={config.tokenizer.path} names an existing tokenizer; "
            "to train one, remove it and set tokenizer.train.vocab_size"
        )
    sampled_bytes = 0

    def counted() -> Iterator[str]:
        nonlocal sampled_bytes
        workers = workers_of_this_machine(config)
        for text in sample_in_processes(config, plan, sample_bytes=training.sample_bytes, workers=workers):
            sampled_bytes += len(text.encode())
            yield text

    started = time.perf_counter()
    texts = counted()
    first = next(texts, None)
    if first is None:
        raise PipelineError(f"there is no text to train a tokenizer on: {why_no_text(config, plan)}")
    content = train_tokenizer(itertools.chain([first], texts), vocab_size=training.vocab_size)
    log.info(
        "tokenizer: %s entries trained on %.1f MB of text, the first documents of each of %s units, in %.1f s",
        f"{training.vocab_size:,}",
        sampled_bytes / 1e6,
        f"{len(plan.units):,}",
        time.perf_counter() - started,
    )
    return content


def publish(
    config: PipelineConfig,
    plan: Plan,
    records: Mapping[int, UnitRecord],
    *,
    encoder: Encoder,
    tokenizer_content: bytes,
    seconds: float,
    base: Base = NOTHING,
) -> DatasetManifest:
    """Make the dataset, or its next version, of the records of all units of the plan, and tell what is not in it."""
    write_units(config.output_dir, base, plan, records)
    manifest = assemble(
        config,
        itertools.chain(base.records.values(), (records[unit.index] for unit in plan.units)),
        tokenizer=encoder.record,
        tokenizer_content=tokenizer_content,
        seconds=seconds,
        version=base.version + 1,
        previous=base.digest,
    )
    for line in left_out(config, add_up_units(records[unit.index] for unit in plan.units).tallies):
        log.warning("%s: %s", config.name, line)
    return manifest


def check_finished(config: PipelineConfig, workspace: Workspace) -> DatasetManifest:
    """The manifest of a run that finds its dataset finished. Raises PipelineError if it is another's, or unfinished."""
    manifest = read_manifest(config.output_dir)
    if manifest.origin is not None:
        raise PipelineError(
            f"output_dir={config.output_dir} was made by `smollm2 pipeline {manifest.origin.verb}`; choose another"
        )
    refuse_unfinished_append(config.output_dir, manifest, workspace)
    take_next(config.output_dir)
    if config_digest(config) != manifest.config_digest:
        require_same_config(config.output_dir / CONFIG_FILE, config)
    workspace.remove_shards_beyond(manifest)
    path = config.tokenizer.path
    if path is not None and path.is_file() and digest_bytes(path.read_bytes()) != manifest.tokenizer.digest:
        raise PipelineError(
            f"output_dir={config.output_dir} was made with another tokenizer than {path} holds now; "
            "choose another output_dir, or remove the folder to start over"
        )
    return manifest


def _tokenizer(config: PipelineConfig, plan: Plan, workspace: Workspace) -> tuple[Encoder, bytes]:
    """Read or train it once; later attempts take the one that the first used."""
    path = config.tokenizer.path
    stored = workspace.tokenizer_path.read_bytes() if workspace.tokenizer_path.is_file() else None
    if path is not None:
        content = read_tokenizer(path)
        if stored is not None and stored != content:
            raise PipelineError(
                f"{path} has changed since the run in {config.output_dir} began; "
                f"restore it, or remove {config.output_dir} to start over"
            )
    else:
        content = stored or make_tokenizer(config, plan)
    try:
        encoder = Encoder(
            content,
            eos_token=config.tokenizer.eos_token,
            origin=str(path or TOKENIZER_FILE),
            path=workspace.tokenizer_path,
            way_out=workspace.way_out,
        )
    except TokenizerError:
        if path is not None or stored is None:
            raise
        raise TokenizerError(f"{workspace.tokenizer_path} is damaged; {workspace.way_out}") from None
    if stored is None:
        write_durably(workspace.tokenizer_path, content)
        if missing := encoder.missing_byte_tokens():
            log.info("tokenizer: %s has no token for %d of the 256 bytes; it drops those silently", path, missing)
    return encoder, content
