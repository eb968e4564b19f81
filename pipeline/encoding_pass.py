"""The encoding pass: every unit of a run to its shards, by whatever executor.

A fast engine that is caught in a difference is not trusted with anything: its unit is done again by the reference at
once, the units after it by the reference, and what it has done before again, by this attempt or the next. Shards of a
finished version stay as they are, so a version that it has made is not added to from then on.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.assembly import report_and_check
from pipeline.bad_records import BadRecordLimit
from pipeline.config import PipelineConfig
from pipeline.document import PipelineError
from pipeline.executors import Finished, Template, WorkerError, begin_ahead, execute, executor_settings
from pipeline.plan import Plan, Unit
from pipeline.progress import ProgressDisplay
from pipeline.status import RunStatus
from pipeline.throughput import Throughput
from pipeline.tokenizer.encode import Encoder, load_ahead
from pipeline.tokenizer.engine import EngineName
from pipeline.totals import add_up_units
from pipeline.unit import UnitRecord, UnitTask
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)


@contextmanager
def workers_ahead(config: PipelineConfig) -> Iterator[Template | None]:
    """What workers of an EncodingPass in this block come of: it loads the engines while the pass is being prepared.
    None where there is no tokenizer yet, and where workers are not this machine's."""
    path = config.tokenizer.path
    if path is None:
        yield None
        return
    load = functools.partial(load_ahead, path, wanted=config.tokenizer.engine)
    with begin_ahead(executor_settings(config), load) as template:
        yield template


@dataclass(frozen=True, slots=True)
class EncodingPass:
    """What units of a plan are done with.

    `earlier` are the records of the version that these units are added to: they count for the limit and the report.
    `template` is what their workers come of, if it has begun already.
    """

    config: PipelineConfig
    plan: Plan
    units: Sequence[Unit]
    workspace: Workspace
    encoder: Encoder
    status: RunStatus
    started: float
    earlier: Collection[UnitRecord] = ()
    template: Template | None = None

    def run(self) -> tuple[Mapping[int, UnitRecord], int]:
        """Do the units; gives the records of all units of the plan that are done, and the tokens that were made now.

        Raises PipelineError as soon as there are more bad records than the whole input may have (`BadRecordLimit`), and
        if a fast engine that made some of `earlier` is caught in a difference.
        """
        workspace = self.workspace
        distrusted_before = workspace.distrusts_engine()
        if distrusted_before:
            log.info("%s, as was found before; tokenizers does all units", workspace.engine_difference())
        records, tokens = self._do_what_is_left()
        if workspace.distrusts_engine() and not distrusted_before:
            log.warning(
                "%s; all units that splintr has made are done again by tokenizers", workspace.engine_difference()
            )
        if not (workspace.distrusts_engine() and any(records[unit.index].is_doubtful for unit in self.units)):
            return records, tokens
        records, more_tokens = self._do_what_is_left()
        return records, tokens + more_tokens

    def _do_what_is_left(self) -> tuple[Mapping[int, UnitRecord], int]:
        config, workspace = self.config, self.workspace
        records = workspace.finished_units(self.plan)
        limit = self._limit()
        for record in itertools.chain(self.earlier, records.values()):
            limit.add(record)
        self._stop_if_too_many_are_bad(limit, records)
        _refuse_doubtful(self.earlier, workspace)
        if records:
            log.info("going on: %d of %d units were done before", len(records), len(self.plan.units))
        items = [unit for unit in self.units if unit.index not in records]
        throughput = Throughput(self.units, (records[unit.index] for unit in self.units if unit.index in records))
        engine: EngineName = "tokenizers"
        if items and not workspace.distrusts_engine():
            engine = self.encoder.choose(config.tokenizer.engine, input_bytes=self.plan.size_bytes)
        make_task = functools.partial(UnitTask, config, self.encoder, workspace.units_directory, engine)
        self.status.watch(throughput)
        self.status.enter_phase("units")
        with ProgressDisplay(throughput) as display:
            for message in execute(executor_settings(config), make_task, items, template=self.template):
                throughput.note(message)
                if isinstance(message, Finished):
                    records.add(message.result.index, message.result)
                    _check_is_here(message.result, workspace)
                    limit.add(message.result)
                    self._stop_if_too_many_are_bad(limit, records)
                    _refuse_doubtful(self.earlier, workspace)
                display.show()
                self.status.refresh()
        return records, throughput.tokens

    def _limit(self) -> BadRecordLimit:
        bytes_by_source = Counter(self.plan.size_bytes_by_source)
        for record in self.earlier:
            bytes_by_source[record.source] += record.size_bytes
        return BadRecordLimit(
            max_bad_record_fraction=self.config.max_bad_record_fraction, bytes_by_source=bytes_by_source
        )

    def _stop_if_too_many_are_bad(self, limit: BadRecordLimit, records: Mapping[int, UnitRecord]) -> None:
        if limit.is_out_of_reach():
            done = itertools.chain(self.earlier, (records[index] for index in sorted(records)))
            report_and_check(self.config, add_up_units(done), seconds=time.perf_counter() - self.started)


def _refuse_doubtful(earlier: Collection[UnitRecord], workspace: Workspace) -> None:
    if not workspace.distrusts_engine():
        return
    if doubtful := sum(record.is_doubtful for record in earlier):
        raise PipelineError(
            f"{workspace.engine_difference()}; {doubtful:,} of {len(earlier):,} units of {workspace.dataset} were made "
            "by such an engine and are not made again by --append; make a new dataset of all files with "
            f"tokenizer.engine=tokenizers, or {workspace.way_out}"
        )


def _check_is_here(record: UnitRecord, workspace: Workspace) -> None:
    """A node that does not share the output folder would write a shard that nobody finds."""
    if not workspace.holds_shards_of(record):
        raise WorkerError(
            f"unit {record.index} was done, but its shards are not in {workspace.dataset}: the nodes do not share it; "
            "choose an output_dir on a file system that all of them share"
        )
