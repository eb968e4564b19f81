"""What a run read before its data was changed on the way (`allow_change: data`), so that it can still be told.

    RUN/data_history/until-step-00000100/config.yaml, run.json    those in force up to and with step 100

The order of samples is a function of the config, and after a change it is that of the new config, at the same number of
samples: sequences that were read before may come again, unless the change only added to what was still to come. A
resume from a checkpoint before a change takes the change back, or makes it anew.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.events import CONFIG_FILE, RUN_FILE, read_run
from checkpoint.manifest import step_name, sync_directory, write_durably
from launch.config import TrainConfig, flatten
from launch.data.mixture import whole_weights
from launch.data.run_samples import stages_of

_FOLDER = "data_history"


@dataclass(frozen=True)
class Period:
    """The steps up to and with `until_step`, and the config and the datasets' digests of then."""

    until_step: int
    config: TrainConfig
    dataset_digests: Mapping[str, str]


def read_history(run_dir: Path, load: Callable[[Path], TrainConfig]) -> list[Period]:
    """In their order. Raises what `load` and `read_run` do for files that do not load."""
    periods = []
    for folder in (run_dir / _FOLDER).glob("until-step-*"):
        until = re.fullmatch(r"until-step-(\d+)", folder.name)
        if until:
            digests = read_run(folder).dataset_digests
            periods.append(Period(int(until[1]), load(folder / CONFIG_FILE), digests))
    return sorted(periods, key=lambda period: period.until_step)


def settle_history(
    run_dir: Path, *, step: int, earlier: Sequence[Period], now: Period, before: Period | None
) -> tuple[Period, ...]:
    """The history of a run that goes on from a step with the data of `now`, made so on the disk.

    `before` is what RUN/config.yaml and run.json hold, which are read here and must not have been replaced yet.
    """
    kept = [period for period in earlier if period.until_step < step]
    later = [period for period in earlier if period.until_step >= step]
    in_force, folder = (later[0], _folder_of(run_dir, later[0].until_step)) if later else (before, run_dir)
    if step and in_force is not None and _data_of(in_force) != _data_of(now):
        _write(run_dir, step, config=(folder / CONFIG_FILE).read_bytes(), record=(folder / RUN_FILE).read_bytes())
        kept.append(Period(step, in_force.config, in_force.dataset_digests))
    names = {_folder_of(run_dir, period.until_step).name for period in kept}
    for folder in (run_dir / _FOLDER).glob("*"):
        if folder.name not in names:
            shutil.rmtree(folder)
    return tuple(kept)


def same_past(before: Period, now: Period, *, samples: int) -> bool:
    """Whether the first samples of a run are the same by both."""

    def past(period: Period) -> list[Any]:
        stages = stages_of(period.config, "train")
        starts = [0, *(stage.end or samples for stage in stages)]
        read = [stage for stage, start in zip(stages, starts, strict=False) if start < samples]
        ends = [min(samples, stage.end or samples) for stage in read[:-1]]
        names = [source.name for source in period.config.data.sources]
        shares = [_shares(names, stage.weights) for stage in read]
        used = sorted({name for share in shares for name, _ in share})
        data = period.config.data
        return [period.config.seed, data.sequence_length, ends, shares, [period.dataset_digests[name] for name in used]]

    return past(before) == past(now)


def _shares(names: Sequence[str], weights: Sequence[float]) -> list[tuple[str, int]]:
    taken = [(name, weight) for name, weight in zip(names, weights, strict=True) if weight]
    return list(zip([name for name, _ in taken], whole_weights([weight for _, weight in taken]), strict=True))


def _data_of(period: Period) -> tuple[dict[str, Any], dict[str, str]]:
    flat = flatten(period.config.data.model_dump(mode="json"))
    free = ("tokenizer", "cache_dir", "cache_bytes")
    settings = {key: value for key, value in flat.items() if key not in free and not key.endswith(".path")}
    return settings, dict(period.dataset_digests)


def _write(run_dir: Path, step: int, *, config: bytes, record: bytes) -> None:
    """A folder that is whole or absent."""
    final = _folder_of(run_dir, step)
    partial = final.with_name(f".partial-{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_durably(partial / CONFIG_FILE, config)
    write_durably(partial / RUN_FILE, record)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync_directory(final.parent)


def _folder_of(run_dir: Path, step: int) -> Path:
    return run_dir / _FOLDER / f"until-{step_name(step)}"
