"""A run done by many jobs that know nothing of each other, such as the tasks of a Slurm array.

Shard i of n does the units whose index is i modulo n, on a file system that all jobs share; `commit` makes the dataset
when all units are done. Shards of one run hold its lock together and one of their own each. Whoever comes first trains
the tokenizer and deduplicates, the others wait.

    DATASET/.work/shards/3-of-8.lock, 3-of-8.json    its lock, and its status as in `status.py`
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import PipelineConfig
from pipeline.document import PipelineError
from pipeline.encoding_pass import EncodingPass
from pipeline.lock import LockedError, locked
from pipeline.plan import Unit, make_plan
from pipeline.run import RunResult, check_files, check_finished, naming_full_disk, prepare, publish
from pipeline.run_events import RunEvents
from pipeline.run_folder import refuse_foreign
from pipeline.status import STATUS_FILE, RunStatus
from pipeline.workspace import Workspace, is_finished, only_run

_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class RunShard:
    """One of `count` equal shares of a run's units."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> RunShard:
        """`3/8`: the fourth of eight. Raises PipelineError."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise PipelineError(f"--shard {text}, wanted i/n with 0 ≤ i < n, such as 0/8")
        return RunShard(int(index), int(count))

    def units(self, units: Sequence[Unit]) -> list[Unit]:
        return [unit for unit in units if unit.index % self.count == self.index]


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What a shard has done, now and before; `tokens` and `seconds` are this attempt's."""

    units: int
    tokens: int
    seconds: float


def run_shard(config: PipelineConfig, shard: RunShard) -> ShardResult:
    """Do the units of one shard, or what an earlier attempt has left of them. Raises what `run` raises."""
    started = time.perf_counter()
    _refuse_shuffle(config)
    if config.run_dir is not None:
        refuse_foreign(config.run_dir, config)
    with only_run(config.output_dir, shared=True), naming_full_disk(config.output_dir):
        workspace = Workspace(config.output_dir)
        if is_finished(config.output_dir):
            check_finished(config, workspace)
            return ShardResult(units=0, tokens=0, seconds=time.perf_counter() - started)
        workspace.check_config(config)
        folder = workspace.directory / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        status_file = folder / f"{shard.index}-of-{shard.count}.json"
        with (
            _only_shard(folder, shard),
            RunStatus(status_file, name=config.name, executor=config.executor) as status,
        ):
            check_files(config)
            plan = make_plan(config)
            encoder, _ = prepare(config, plan, workspace, status)
            units = shard.units(plan.units)
            workspace.remove_partials(of_units={unit.index for unit in units})
            _, tokens = EncodingPass(config, plan, units, workspace, encoder, status, started=started).run()
        return ShardResult(units=len(units), tokens=tokens, seconds=time.perf_counter() - started)


def commit(config: PipelineConfig) -> RunResult:
    """Make the dataset of units that are all done.

    Raises PipelineError, saying which shards are missing, if some are not, or while a shard is at work.
    """
    with RunEvents(config) as events:
        result = _commit(config, events)
        events.tell_dataset(result.manifest, seconds=result.seconds, was_finished=result.was_finished)
        return result


def _commit(config: PipelineConfig, events: RunEvents) -> RunResult:
    started = time.perf_counter()
    _refuse_shuffle(config)
    with only_run(config.output_dir), naming_full_disk(config.output_dir):
        workspace = Workspace(config.output_dir)
        if is_finished(config.output_dir):
            manifest = check_finished(config, workspace)
            workspace.remove()
            return RunResult(manifest, was_finished=True, tokens=0, seconds=time.perf_counter() - started)
        if not workspace.has_begun():
            raise PipelineError(
                f"nothing to commit: no shard of {config.name} has begun in {config.output_dir}; "
                "run each with `smollm2 pipeline run CONFIG --shard i/n`"
            )
        workspace.check_config(config)
        with RunStatus(config.output_dir / STATUS_FILE, name=config.name, executor="commit") as status:
            check_files(config)
            plan = make_plan(config)
            workspace.begin(config, plan)
            records = workspace.finished_units(plan)
            missing = [unit for unit in plan.units if unit.index not in records]
            if missing:
                raise PipelineError(_describe_missing(workspace.directory / "shards", missing, total=len(plan.units)))
            events.begin(goes_on=True)
            encoder, content = prepare(config, plan, workspace, status)
            status.enter_phase("assembly")
            seconds = time.perf_counter() - started
            manifest = publish(config, plan, records, encoder=encoder, tokenizer_content=content, seconds=seconds)
            workspace.remove_partials()
        workspace.remove()
        return RunResult(manifest, was_finished=False, tokens=0, seconds=time.perf_counter() - started)


def _refuse_shuffle(config: PipelineConfig) -> None:
    if config.shuffle_seed is not None:
        raise PipelineError(
            f"shuffle_seed={config.shuffle_seed} does not go with --shard and commit; remove it, and shuffle what they "
            "made with `smollm2 pipeline shuffle DATASET OUT`"
        )


@contextmanager
def _only_shard(folder: Path, shard: RunShard) -> Iterator[None]:
    """Hold the lock of a shard. Raises PipelineError if another job holds it, or one of another cut of the same run."""
    name = f"{shard.index}-of-{shard.count}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / name))
        except LockedError as error:
            raise PipelineError(
                f"shard {shard.index}/{shard.count} is being done by another job ({error}); wait for it"
            ) from None
        for path in folder.glob("*.lock"):
            if not path.name.endswith(f"-of-{shard.count}.lock"):
                try:
                    with locked(path):
                        pass
                except LockedError as error:
                    raise PipelineError(
                        f"shard {path.stem.replace('-of-', '/')} is being done ({error}), which shares units with "
                        f"{shard.index}/{shard.count}; wait for it, or cut the run into as many shards"
                    ) from None
        yield


def _describe_missing(folder: Path, missing: Sequence[Unit], *, total: int) -> str:
    counts = {int(path.stem.partition("-of-")[2]) for path in folder.glob("*.lock")}
    named = ", ".join(str(unit.index) for unit in missing[:_MAX_NAMED])
    more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
    where = ""
    if len(counts) == 1:
        (count,) = counts
        shards = sorted({unit.index % count for unit in missing})
        some = ", ".join(f"{index}/{count}" for index in shards[:_MAX_NAMED])
        where = f", of shard{'s' if len(shards) > 1 else ''} {some}{', …' if len(shards) > _MAX_NAMED else ''}"
    return (
        f"{len(missing):,} of {total:,} units are not done{where} (units {named}{more}); run those shards again, or "
        "`smollm2 pipeline run` without --shard to do the rest here"
    )
