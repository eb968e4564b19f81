"""What a run reads: datasets, their shares, and how the shares change over the run. No file is read here.

Without `stages` the shares are those of `sources` from the first token to the last. With them each stage says the
weight of every source by name:

    stages:
      - {until_tokens: 6_000_000_000_000, weights: {web: 90, code: 10, math: 0}}
      - {weights: {web: 75, code: 20, math: 5}}

Tokens are counted from the beginning of the run. A stage begins with the first sequence behind the one before it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, model_validator

from launch.settings import Settings


def is_url(path: Path | str) -> bool:
    """Whether a dataset lies in an object store (`s3://bucket/dataset`), or any other file system of fsspec."""
    return isinstance(path, str)


def _path_or_url(given: Any) -> Path | str:
    if not isinstance(given, str | Path):
        raise ValueError(f"got {given!r}, wanted a folder or a URL")
    return given if isinstance(given, str) and "://" in given else Path(given)


# not a union's own validation, which takes no Path where the config comes as JSON
DatasetPath = Annotated[Path | str, PlainValidator(_path_or_url)]


class SourceConfig(Settings):
    """One dataset. `weight` is its share of the samples, relative to the sum of the weights; beside `data.stages` it
    is its share of the validation set, which stays the same over the stages.

    `max_epochs`: a run that would go through the dataset more often is refused.
    """

    name: str = Field(min_length=1)
    path: DatasetPath
    weight: float = Field(default=1.0, gt=0)
    max_epochs: float | None = Field(default=None, gt=0)


class StageConfig(Settings):
    """The mixture up to a number of tokens of the run; only the last stage may leave it out, and is then without end.

    Weights are relative to their sum; 0 leaves a source out.
    """

    until_tokens: int | None = Field(default=None, ge=1)
    weights: dict[str, Annotated[float, Field(ge=0)]]


class DataConfig(Settings):
    """Datasets made by the pipeline, packed into sequences of `sequence_length` tokens.

    Shards of datasets in an object store are copied to `cache_dir`, a folder that the ranks of a node share, of at
    most `cache_bytes`.
    """

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    stages: tuple[StageConfig, ...] = ()
    sequence_length: int = Field(ge=2)
    document_masking: bool = True
    tokenizer: Path | None = None  # a tokenizer.json that every source must have been made with
    cache_dir: Path | None = None
    cache_bytes: int = Field(default=100_000_000_000, ge=1)

    def stage_ends(self) -> list[int | None]:
        """The sample of the run behind each stage; None: the last is without end."""
        length = self.sequence_length
        return [stage.until_tokens and -(-stage.until_tokens // length) for stage in self.stages]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"sources: the name {name!r} stands {names.count(name)} times; give each its own")
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        problems = [*self._weight_problems(), *self._end_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _urls_have_a_cache(self) -> Self:
        remote = [source for source in self.sources if is_url(source.path)]
        if remote and self.cache_dir is None:
            raise ValueError(
                f"sources: {remote[0].name} is read from {remote[0].path} and there is no data.cache_dir to copy its "
                "shards to; name a folder on a local disk"
            )
        return self

    def _weight_problems(self) -> Iterator[str]:
        names = [source.name for source in self.sources]
        for number, stage in enumerate(self.stages):
            where = f"stages.{number}.weights"
            for name in stage.weights.keys() - set(names):
                nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(names)}"
                yield f"{where} names {name!r}, which is no source; {hint}"
            for name in names:
                if name not in stage.weights:
                    yield f"{where} says nothing of source {name!r}; give it a weight, 0 to leave it out"
            if not any(stage.weights.values()):
                yield f"{where} are all 0; give a source more"

    def _end_problems(self) -> Iterator[str]:
        before = 0
        for number, (stage, end) in enumerate(zip(self.stages, self.stage_ends(), strict=True)):
            where = f"stages.{number}"
            if end is None:
                if number < len(self.stages) - 1:
                    yield f"{where} has no until_tokens, and only the last stage may be without end; say where it ends"
                return
            if end <= before:
                begins = self.stages[number - 1].until_tokens if number else 0
                yield (
                    f"{where}.until_tokens={stage.until_tokens} is not a sequence of {self.sequence_length} tokens "
                    f"behind its beginning at {begins}; tokens are counted from the beginning of the run"
                )
                return
            before = end
