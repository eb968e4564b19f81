"""What a training run will read of its datasets, before it runs: epochs by source, tokens by stage, what runs out when.

Reads the few fields of a training config that it needs, and the manifests of the datasets. Of the order of samples it
knows only what every order has in common: after k samples of a stage, a source has had its share of k, to within one
(`launch/data/mixture.py`), so that a step told here is the trainer's to within one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.shards.format import MANIFEST_FILE, DatasetManifest, read_manifest


class _Fields(BaseModel):
    """Fields that are read; what else the config says is the trainer's business, which checks it."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class SourceFields(_Fields):
    """`data.sources`: a dataset or its URL, and its share of the samples, relative to the sum of the weights."""

    name: str
    path: str
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class StageFields(_Fields):
    """`data.stages`: the weights by source up to a number of tokens of the run, None for the rest of it."""

    until_tokens: int | None = Field(default=None, ge=1)
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]

    @model_validator(mode="after")
    def _a_source_is_read(self) -> Self:
        if not any(self.weights.values()):
            raise ValueError("weights are all 0; give a source more")
        return self


class DataFields(_Fields):
    sources: tuple[SourceFields, ...] = Field(min_length=1)
    stages: tuple[StageFields, ...] = ()
    sequence_length: int = Field(ge=2)


class MixtureFields(_Fields):
    """What decides the mixture in a training config."""

    name: str
    data: DataFields
    batch_tokens: int = Field(ge=1)
    steps: int = Field(ge=1)

    @model_validator(mode="after")
    def _a_step_has_a_sample(self) -> Self:
        if self.batch_tokens < self.data.sequence_length:
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is less than one sequence of data.sequence_length="
                f"{self.data.sequence_length}; raise it"
            )
        return self


@dataclass(frozen=True, slots=True)
class Stage:
    """Samples of one mixture; `weights` by source, in any scale. A stage may begin in the middle of a step."""

    name: str
    samples: int
    weights: Mapping[str, float]

    def share(self, source: str) -> Fraction:
        # repr: a decimal such as 0.1 means one tenth
        weights = {name: Fraction(repr(float(weight))) for name, weight in self.weights.items()}
        return weights.get(source, Fraction(0)) / sum(weights.values())


@dataclass(frozen=True, slots=True)
class SourcePreview:
    """A source over the whole run. Tokens are those of the samples read; None for what only a made dataset tells.

    `repeats_at_step` is the step, from 1, in which the second epoch begins, and `repeats_in_stage` that step's stage.
    """

    name: str
    tokens_by_stage: tuple[int, ...]
    tokens_available: int | None
    epochs: float | None
    repeats_at_step: int | None
    repeats_in_stage: str | None

    @property
    def tokens_read(self) -> int:
        return sum(self.tokens_by_stage)


@dataclass(frozen=True, slots=True)
class MixturePreview:
    """`samples_per_step` sequences of `sequence_length` tokens a step; `remarks` say what a reader would overlook."""

    name: str
    sequence_length: int
    samples_per_step: int
    stages: tuple[Stage, ...]
    sources: tuple[SourcePreview, ...]
    remarks: tuple[str, ...]


def stages_of(config: MixtureFields) -> tuple[Stage, ...]:
    """The stages that the run reaches, in their order; one, called `all`, without `data.stages`."""
    length = config.data.sequence_length
    total = config.steps * (config.batch_tokens // length)
    if not config.data.stages:
        return (Stage("all", total, {source.name: source.weight for source in config.data.sources}),)
    stages, begins = [], 0
    for number, stage in enumerate(config.data.stages, start=1):
        ends = total if stage.until_tokens is None else min(total, -(-stage.until_tokens // length))
        if ends > begins:
            stages.append(Stage(str(number), ends - begins, stage.weights))
            begins = ends
    return tuple(stages)


def preview(config: MixtureFields) -> MixturePreview:
    """Datasets that are not made yet count as of unknown size. Raises DatasetError for a damaged manifest."""
    manifests = {
        source.name: read_manifest(Path(source.path)) if (Path(source.path) / MANIFEST_FILE).is_file() else None
        for source in config.data.sources
    }
    length, stages = config.data.sequence_length, stages_of(config)
    samples_per_step = config.batch_tokens // length
    return MixturePreview(
        name=config.name,
        sequence_length=length,
        samples_per_step=samples_per_step,
        stages=stages,
        sources=tuple(
            _preview_source(
                name,
                None if manifest is None else manifest.splits["train"].tokens,
                stages=stages,
                sequence_length=length,
                samples_per_step=samples_per_step,
            )
            for name, manifest in manifests.items()
        ),
        remarks=tuple(_remarks(config, manifests)),
    )


def _preview_source(
    name: str, tokens: int | None, *, stages: Sequence[Stage], sequence_length: int, samples_per_step: int
) -> SourcePreview:
    samples = [stage.share(name) * stage.samples for stage in stages]
    # the last incomplete sample of an epoch is left out, and each needs the token after it
    size = None if tokens is None else max(0, tokens - 1) // sequence_length
    step, stage = (None, None) if not size else _first_repeat(name, size, stages, samples_per_step=samples_per_step)
    return SourcePreview(
        name=name,
        tokens_by_stage=tuple(round(count * sequence_length) for count in samples),
        tokens_available=tokens,
        epochs=float(sum(samples) / size) if size else None,
        repeats_at_step=step,
        repeats_in_stage=stage,
    )


def _first_repeat(
    name: str, size: int, stages: Sequence[Stage], *, samples_per_step: int
) -> tuple[int, str] | tuple[None, None]:
    left, begins = Fraction(size), 0
    for stage in stages:
        share = stage.share(name)
        if left < share * stage.samples:
            return int((begins + left / share) / samples_per_step) + 1, stage.name
        left -= share * stage.samples
        begins += stage.samples
    return None, None


def _remarks(config: MixtureFields, manifests: Mapping[str, DatasetManifest | None]) -> list[str]:
    remarks = []
    for source in config.data.sources:
        manifest = manifests[source.name]
        if manifest is None and "://" in source.path:
            remarks.append(f"{source.name}: {source.path} lies in a store, which is not asked; name a local copy of it")
        elif manifest is None:
            remarks.append(f"{source.name}: {source.path} is not made yet; `smollm2 pipeline run` makes it")
        elif manifest.splits["train"].tokens <= config.data.sequence_length:
            remarks.append(
                f"{source.name}: {source.path} has {manifest.splits['train'].tokens:,} training tokens, fewer than one "
                f"sequence of {config.data.sequence_length:,} and the token after it"
            )
    digests = {manifest.tokenizer.digest for manifest in manifests.values() if manifest is not None}
    if len(digests) > 1:
        remarks.append("the datasets were made with different tokenizers; a run refuses to mix them")
    return remarks
