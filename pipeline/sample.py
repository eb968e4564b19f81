"""The texts that a tokenizer is trained on: the first training documents of every unit, in proportion to its size.

Spread over all units, so that no source and no end of one is left out; deterministic; read as a stream. Which texts
they are depends on the config and the input only. A large sample is read by several processes, and then its order is
not fixed: training counts words and does not care.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.config import PipelineConfig
from pipeline.executors import ExecutorSettings, execute
from pipeline.first_bad import first_bad
from pipeline.plan import Plan, Unit
from pipeline.unit import UnitReader

# workers need a second or two to start; below this, reading alone is done sooner
MIN_PARALLEL_BYTES = 32 << 20
_BATCH_CHARACTERS = 1 << 18


def sample_texts(config: PipelineConfig, plan: Plan, *, sample_bytes: int) -> Iterator[str]:
    """About `sample_bytes` of text, or all of it if there is less. Validation documents are left out.

    Raises SourceError for a damaged file, as far as it is read.
    """
    share = sample_bytes / max(1, plan.size_bytes)
    for unit in plan.units:
        yield from _texts_of(config, unit, share=share)


def sample_in_processes(config: PipelineConfig, plan: Plan, *, sample_bytes: int, workers: int) -> Iterator[str]:
    """The texts of `sample_texts` in any order, read and filtered by several processes if that is worth their start.

    So they are whatever their size where a worker's memory has a limit. Raises WorkerError besides.
    """
    limit = config.max_worker_memory_bytes
    is_small = workers == 1 or len(plan.units) == 1 or min(sample_bytes, plan.size_bytes) < MIN_PARALLEL_BYTES
    if is_small and limit is None:  # only a process of its own can be ended
        yield from sample_texts(config, plan, sample_bytes=sample_bytes)
        return
    make_task = functools.partial(SampleTask, config, sample_bytes / max(1, plan.size_bytes))
    told: Counter[int] = Counter()
    for message in execute(ExecutorSettings("local", workers, limit), make_task, plan.units):
        # a unit whose worker died is read again from its start, and tells the same
        if isinstance(message, _Batch) and message.number == told[message.unit]:
            told[message.unit] += 1
            yield from message.texts


@dataclass(frozen=True, slots=True)
class _Batch:
    """Some of a unit's texts; batches of a unit are numbered from 0."""

    unit: int
    number: int
    texts: list[str]


class SampleTask:
    """A worker's task: it tells the texts of a unit's part of the sample, some at a time."""

    def __init__(self, config: PipelineConfig, share: float) -> None:
        self._config = config
        self._share = share

    def __call__(self, unit: Unit, tell: Callable[[_Batch], None]) -> None:
        batch: list[str] = []
        number = characters = 0
        for text in _texts_of(self._config, unit, share=self._share):
            batch.append(text)
            characters += len(text)
            if characters >= _BATCH_CHARACTERS:
                tell(_Batch(unit.index, number, batch))
                batch, number, characters = [], number + 1, 0
        tell(_Batch(unit.index, number, batch))


def _texts_of(config: PipelineConfig, unit: Unit, *, share: float) -> Iterator[str]:
    # at least a byte: a unit gives its first document however small the sample
    quota_bytes = max(1.0, share * unit.size_bytes)
    taken_bytes = 0
    for kept in UnitReader(config, unit):
        if share < 1 and taken_bytes >= quota_bytes:
            break
        if kept.split == "train":
            taken_bytes += kept.text_bytes
            yield kept.document.whole_text


def why_no_text(config: PipelineConfig, plan: Plan) -> str:
    """Of an input that gave no sample: what became of the records of its first unit."""
    unit = plan.units[0]
    reader = UnitReader(config, unit)
    for _ in reader:
        pass
    first = [
        f"{dropped.documents:,} {reason}, the first {first_bad(config, [(unit.source, reader.tally)], reason)}"
        for reason, dropped in reader.tally.dropped.items()
    ]
    return f"of source {unit.source!r} are dropped {'; '.join(first)}" if first else "all of it is for validation"
