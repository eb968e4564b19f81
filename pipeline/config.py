"""What a pipeline run is told: sources, tokenizer, filters, sizes. Frozen; unknown keys are errors.

Relative paths are relative to the folder that the command is started in. The output's bytes depend on every field but
those of `FREE_FIELDS`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.deduplication.config import DeduplicationConfig
from pipeline.filter_config import FilterConfig, LengthConfig, files_of
from pipeline.shards.format import MAX_VOCAB_SIZE, digest_bytes, digest_file
from pipeline.source_config import Section, SourceConfig
from pipeline.tokenizer.special_tokens import EOS_TOKEN, MIN_VOCAB_SIZE

ExecutorKind = Literal["serial", "local", "ray"]

# may differ between the attempts of one run: they change when, where and how fast bytes are written, not which
FREE_FIELDS = frozenset(
    {
        "output_dir",
        "run_dir",
        "executor",
        "workers",
        "max_worker_memory_bytes",
        "max_bad_record_fraction",
        "tokenizer.engine",
        "shuffle_bucket_bytes",
    }
)


class TrainTokenizerConfig(Section):
    """A byte-level BPE like SmolLM2's, trained on `sample_bytes` of text spread evenly over the sources."""

    vocab_size: int = Field(ge=MIN_VOCAB_SIZE, le=MAX_VOCAB_SIZE)
    sample_bytes: int = Field(default=256 << 20, ge=1)


class TokenizerConfig(Section):
    """Either an existing `tokenizer.json` (`path`) or a new one (`train`).

    `engine: auto` encodes with splintr if it is installed and gives the same ids as `tokenizers`, else with that.
    """

    path: Path | None = None
    train: TrainTokenizerConfig | None = None
    eos_token: str = EOS_TOKEN
    engine: Literal["auto", "tokenizers", "splintr"] = "auto"

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.path is None) == (self.train is None):
            raise ValueError(
                "wanted either path (an existing tokenizer.json) or train (vocab_size), not both, not none"
            )
        if self.train is not None and self.eos_token != EOS_TOKEN:
            raise ValueError(f"a trained tokenizer ends documents with {EOS_TOKEN}; remove eos_token={self.eos_token}")
        return self


class PipelineConfig(Section):
    """One dataset: what goes in, what is kept of it, how it becomes ids, and where it lies."""

    name: str = Field(min_length=1)
    output_dir: Path
    run_dir: Path | None = Field(
        default=None, description="the folder of the run, which `smollm2 checkpoint serve` ships to MLflow"
    )
    sources: tuple[SourceConfig, ...]
    tokenizer: TokenizerConfig
    filters: tuple[FilterConfig, ...] = (LengthConfig(type="length"),)
    deduplication: DeduplicationConfig = DeduplicationConfig()
    validation_fraction: float = Field(default=0.001, ge=0, lt=1)
    max_bad_record_fraction: float = Field(default=0.001, ge=0, le=1)
    unit_size_bytes: int | None = Field(
        default=None,
        ge=1,
        description="None: such that there are 256 units, within 8 and 32 MiB (2 and 8 with filters that look into "
        "texts); more beyond 16,384",
    )
    shard_size_bytes: int = Field(default=512 << 20, ge=1 << 10)
    shuffle_seed: int | None = Field(
        default=None, ge=0, lt=1 << 64, description="None: documents stay in the order of the sources"
    )
    shuffle_bucket_bytes: int = Field(
        default=128 << 20,
        ge=1,
        le=2 << 30,
        description="a shuffle takes memory for about two; they are larger where there would be more than 2,048",
    )
    executor: ExecutorKind = "local"
    workers: int | None = Field(default=None, ge=1, description="None: one for each core, or CPU of the cluster")
    max_worker_memory_bytes: int | None = Field(
        default=None,
        ge=64 << 20,
        description="a worker that holds more is ended, and its unit tried again",
    )

    @model_validator(mode="after")
    def _serial_is_one_process(self) -> Self:
        if self.executor == "serial" and (self.workers or 1) > 1:
            raise ValueError(f"executor=serial works alone; remove workers={self.workers}, or choose executor=local")
        if self.executor == "serial" and self.max_worker_memory_bytes is not None:
            raise ValueError("executor=serial has no worker to end; remove max_worker_memory_bytes, or choose local")
        return self

    @field_validator("output_dir")
    @classmethod
    def _output_dir_has_a_name(cls, output_dir: Path) -> Path:
        if output_dir.name in ("", ".."):
            raise ValueError(
                f"{output_dir} has no name; wanted a folder that has one, such as {output_dir / 'dataset'}"
            )
        return output_dir

    @model_validator(mode="after")
    def _run_dir_is_elsewhere(self) -> Self:
        if self.run_dir is not None and self.run_dir.absolute().is_relative_to(self.output_dir.absolute()):
            raise ValueError(
                f"run_dir={self.run_dir} lies in output_dir={self.output_dir}, which holds the dataset only; choose a "
                f"folder outside it, such as runs/{self.name}"
            )
        return self

    @field_validator("filters", mode="before")
    @classmethod
    def _filters_are_a_list(cls, filters: Any) -> Any:
        if not isinstance(filters, list | tuple):
            raise ValueError(
                "wanted a list of filters, asked in its order, such as [{type: length, min_characters: 5}]"
            )
        return filters

    @model_validator(mode="after")
    def _sources_are_named(self) -> Self:
        if not self.sources:
            raise ValueError("sources is empty; wanted at least one")
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}; give each a name of its own")
        return self


def content_of(config: PipelineConfig) -> dict[str, Any]:
    """The fields that decide the dataset's bytes, as JSON values, and the digests of the files that filters read."""
    content: dict[str, Any] = json.loads(config.model_dump_json())
    for field in FREE_FIELDS:
        *sections, name = field.split(".")
        section = content
        for key in sections:
            section = section[key]
        del section[name]
    if files := files_of(config.filters):
        content["filter_files"] = {str(path): digest_file(path) if path.is_file() else None for path in files}
    return content


def config_digest(config: PipelineConfig) -> str:
    """Equal for two configs that make the same bytes of the same inputs."""
    return digest_bytes(json.dumps(content_of(config), sort_keys=True).encode())


def differences(before: Any, after: Any, *, path: str = "") -> list[str]:
    """`key: before → after` for every leaf in which two JSON trees differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        return [
            line
            for key in keys
            for line in differences(before.get(key), after.get(key), path=f"{path}.{key}" if path else key)
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line
            for index, (old, new) in enumerate(zip(before, after, strict=True))
            for line in differences(old, new, path=f"{path}.{index}")
        ]
    return [] if before == after else [f"{path}: {json.dumps(before)} → {json.dumps(after)}"]
