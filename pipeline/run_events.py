"""What a data run tells in the event log of its `run_dir`, as `checkpoint/events.py` has it, for the service to ship.

    state, params      at the beginning of an attempt; state, with the reason, at its end
    metrics            progress/… at the bytes of input that are done, dataset/… at the version of the dataset
    dataset            what was made, with the digest of its contents

Only the driver tells, and nobody waits: no network, no sync but at the end. A run neither fails nor goes another way
because of it: what cannot be written is said once and left out, and a later attempt tells the end of a finished run. A
`run_dir` that is another run's is refused before any work. The shards of an array job tell nothing, `commit` tells all.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from checkpoint.events import EventKind, EventWriter, events_file, read_events
from pipeline.config import PipelineConfig
from pipeline.deduplication.duplicate_report import REPORT_FILE as DEDUPLICATION_FILE
from pipeline.run_folder import copy_artifacts, open_run_folder, write_config
from pipeline.shards.format import DatasetManifest
from pipeline.status import reason_of
from pipeline.throughput import Snapshot
from pipeline.unit import UnitRecord

log = logging.getLogger(__name__)

# a day is 3 MB of log and 80,000 rows of MLflow
METRICS_INTERVAL_S = 10.0

_MAX_REASON_CHARACTERS = 1000


@dataclass(frozen=True)
class _Sums:
    """Of the units of the version that a run adds to."""

    units: int = 0
    input_bytes: int = 0
    documents_in: int = 0
    documents_kept: int = 0
    tokens: int = 0


class RunEvents:
    """Does nothing without a `run_dir`. A context manager: leaving it says how the attempt ended, if it had begun."""

    def __init__(self, config: PipelineConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        self._events: EventWriter | None = None
        self._has_opened = self._has_begun = self._has_complained = False
        self._began_s = self._told_s = 0.0
        self._step = 0
        self._snapshot: Snapshot | None = None
        self._earlier = _Sums()
        self._reports_in = config.output_dir

    def __enter__(self) -> RunEvents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._has_begun:
                self._end(error)
        finally:
            with self._tolerating():
                self._stack.close()

    def begin(self, *, goes_on: bool, earlier: Iterable[UnitRecord] = (), reports_in: Path | None = None) -> None:
        """An attempt begins, once it is sure to be one. `goes_on`: something of the dataset was made before.

        `earlier` are the units of the version that the dataset is at; `reports_in` is where an attempt that fails
        leaves its reports, None: in the dataset. Raises PipelineError if the folder is another's.
        """
        if self._has_begun:
            return
        self._open(goes_on=goes_on)
        self._has_begun = True
        self._earlier = _add_up(earlier)
        self._reports_in = reports_in or self._config.output_dir
        self._step = self._earlier.input_bytes
        # file times may be of coarser clocks than this
        self._began_s, self._told_s = time.time() - 1, time.monotonic()
        if self._events is not None and self._config.run_dir is not None:
            with self._tolerating():
                write_config(self._config.run_dir, self._config)
            self._write("state", step=self._step, state="running")
            self._write("params", step=self._step, **parameters(self._config))

    def tell_progress(self, snapshot: Snapshot) -> None:
        """To be called as often as one likes; writes at intervals."""
        self._snapshot = snapshot
        # what a lost worker had done, or a fast engine that is not trusted any more, is done again
        self._step = max(self._step, snapshot.input_bytes_done + self._earlier.input_bytes)
        if time.monotonic() - self._told_s >= METRICS_INTERVAL_S:
            self._write_progress()

    def tell_dataset(self, manifest: DatasetManifest, *, seconds: float, was_finished: bool) -> None:
        """What the run made, or found made: that is told only where an earlier attempt has not come to it."""
        run_dir = self._config.run_dir
        if run_dir is None:
            return
        self._open(goes_on=True)
        is_told = False
        with self._tolerating():
            is_told = was_finished and _is_told(run_dir, manifest)
        if self._events is None or is_told:
            return
        self.begin(goes_on=True)
        metrics = dataset_metrics(manifest) | self._paragraph_metrics()
        if not was_finished:
            metrics["dataset/seconds"] = round(seconds, 3)
        self._write("metrics", step=manifest.version, **metrics)
        self._write(
            "dataset",
            step=manifest.version,
            name=manifest.name,
            path=str(self._config.output_dir.absolute()),
            digest=manifest.digest(),
            documents=manifest.documents,
            tokens=manifest.tokens,
        )
        with self._tolerating():
            copy_artifacts(run_dir, self._config.output_dir)

    def _paragraph_metrics(self) -> dict[str, float]:
        try:
            report = json.loads((self._config.output_dir / DEDUPLICATION_FILE).read_bytes())
        except (OSError, ValueError):
            return {}  # not deduplicated
        return {f"dataset/paragraphs_{name}": count for name, count in report.get("paragraphs", {}).items()}

    def _open(self, *, goes_on: bool) -> None:
        run_dir = self._config.run_dir
        if run_dir is None or self._has_opened:
            return
        self._has_opened = True
        with self._tolerating():
            self._stack.enter_context(open_run_folder(run_dir, self._config, goes_on=goes_on))
            self._events = self._stack.enter_context(EventWriter(events_file(run_dir)))

    def _end(self, error: BaseException | None) -> None:
        if self._snapshot is not None:
            self._write_progress()
        if error is None:
            self._write("state", step=self._step, state="finished")
        else:
            if self._events is not None and self._config.run_dir is not None:
                with self._tolerating():
                    copy_artifacts(self._config.run_dir, self._reports_in, since_s=self._began_s)
            state = "failed" if isinstance(error, Exception) else "killed"
            self._write("state", step=self._step, state=state, reason=_reason(error))
        if self._events is not None:
            with self._tolerating():
                self._events.sync()

    def _write_progress(self) -> None:
        assert self._snapshot is not None
        self._told_s = time.monotonic()
        self._write("metrics", step=self._step, **progress_metrics(self._snapshot, self._earlier))

    def _write(self, kind: EventKind, *, step: int, **fields: Any) -> None:
        if self._events is not None:
            with self._tolerating():
                self._events.write(kind, step=step, **fields)

    @contextmanager
    def _tolerating(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_complained:
                log.warning(
                    "run_dir=%s cannot be written (%s); the run goes on, and what it tells there may be incomplete",
                    self._config.run_dir,
                    error.strerror or error,
                )
            self._has_complained = True


def parameters(config: PipelineConfig) -> dict[str, str | float]:
    """The resolved config as flat text and numbers: `sources.0.name`. A list of plain values is one, as JSON."""
    return dict(_flatten(json.loads(config.model_dump_json())))


def progress_metrics(snapshot: Snapshot, earlier: _Sums) -> dict[str, float]:
    """Sums of all attempts and of the `earlier` version; rates are those of now."""
    documents_in = snapshot.documents_in + earlier.documents_in
    documents_kept = snapshot.documents_kept + earlier.documents_kept
    metrics = {
        "progress/input_bytes": snapshot.input_bytes_done + earlier.input_bytes,
        "progress/input_fraction": snapshot.input_bytes_done / max(1, snapshot.input_bytes_total),
        "progress/units_done": snapshot.units_done + earlier.units,
        "progress/documents_in": documents_in,
        "progress/documents_kept": documents_kept,
        "progress/tokens": snapshot.tokens_before + snapshot.tokens + earlier.tokens,
        "progress/tokens_per_s": snapshot.tokens_per_s_now,
        "progress/input_bytes_per_s": snapshot.input_bytes_per_s_now,
    }
    return metrics | ({"progress/kept_fraction": documents_kept / documents_in} if documents_in else {})


def _add_up(records: Iterable[UnitRecord]) -> _Sums:
    sums = _Sums()
    for record in records:
        sums = _Sums(
            units=sums.units + 1,
            input_bytes=sums.input_bytes + record.size_bytes,
            documents_in=sums.documents_in + record.tally.documents_in,
            documents_kept=sums.documents_kept + record.tally.documents_kept,
            tokens=sums.tokens + record.tokens,
        )
    return sums


def dataset_metrics(manifest: DatasetManifest) -> dict[str, float]:
    """The sums of a dataset, what was dropped by its reason, duplicates among them, and the tokens of each source."""
    metrics: dict[str, float] = {
        "dataset/documents_in": manifest.documents_in,
        "dataset/documents_kept": manifest.documents,
        "dataset/kept_fraction": manifest.documents / max(1, manifest.documents_in),
        "dataset/text_bytes_kept": manifest.text_bytes_kept,
        "dataset/bytes_per_token": manifest.text_bytes_kept / max(1, manifest.tokens),
        "dataset/tokens": manifest.tokens,
        "dataset/shards": sum(len(split.shards) for split in manifest.splits.values()),
        "dataset/size_bytes": sum(shard.size_bytes for split in manifest.splits.values() for shard in split.shards),
    }
    metrics |= {f"dataset/{name}/tokens": split.tokens for name, split in manifest.splits.items()}
    metrics |= {f"dataset/dropped/{reason}": dropped.documents for reason, dropped in manifest.dropped.items()}
    return metrics | {f"dataset/sources/{name}/tokens": source.tokens for name, source in manifest.sources.items()}


def _flatten(tree: Any, path: str = "") -> Iterator[tuple[str, str | float]]:
    prefix = f"{path}." if path else ""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flatten(value, f"{prefix}{key}")
    elif isinstance(tree, list) and any(isinstance(item, Mapping | list) for item in tree):
        for index, item in enumerate(tree):
            yield from _flatten(item, f"{prefix}{index}")
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield path, tree
    else:
        yield path, json.dumps(tree, ensure_ascii=False) if isinstance(tree, Mapping | list) else str(tree)


def _is_told(run_dir: Path, manifest: DatasetManifest) -> bool:
    digest, state, told = manifest.digest(), None, False
    for event, _ in read_events(events_file(run_dir)):
        if event.kind == "state":
            state = event.fields.get("state")
        told |= event.kind == "dataset" and event.fields.get("digest") == digest
    return told and state == "finished"


def _reason(error: BaseException) -> str:
    # a file's name need not be UTF-8
    return reason_of(error)[:_MAX_REASON_CHARACTERS].encode(errors="replace").decode()
