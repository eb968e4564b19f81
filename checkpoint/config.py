"""What the service is told: one YAML file, `configs/service/*.yaml`, with `key=value` overrides. No I/O.

A token is never part of a config: the config names the file or the environment variable that holds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
DESTINATIONS = ("s3://", "hf://", "/")


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RetentionConfig(_Config):
    """Which checkpoints stay: those that any of the rules keeps, and those of the promises of `retention.py`."""

    keep_last: int = Field(default=3, ge=1)
    keep_every_steps: int | None = Field(default=None, ge=1)
    keep_best: int = Field(default=0, ge=0)
    disk_high_water_fraction: float = Field(default=0.9, gt=0, le=1)
    """Above this share of the disk in use the rules give way, oldest checkpoints first; the promises do not."""


class JobLimits(_Config):
    """What a job in a process of its own may take, and how often it is tried."""

    memory_limit_bytes: int = Field(default=32 * 2**30, ge=2**28)
    """Memory that is not file cache, of the job and all that it starts together."""
    timeout_s: float = Field(default=4 * 3600.0, gt=0)
    attempts: int = Field(default=5, ge=1)
    first_pause_s: float = Field(default=60.0, gt=0)
    longest_pause_s: float = Field(default=3600.0, gt=0)


class EvaluationConfig(_Config):
    """What is measured of each proven export before it is published."""

    datasets: dict[str, Path] = Field(default_factory=dict)
    """Perplexity on folders that `smollm2 pipeline run` made, by the names that the metrics get."""
    split: str = "validation"
    max_tokens: int = Field(default=100_000, ge=1)
    """Of each dataset, the first ones."""
    lm_eval_tasks: tuple[str, ...] = ()
    lm_eval_include: Path | None = None
    """A folder with the definitions of tasks of one's own."""
    lm_eval_limit: int | None = Field(default=None, ge=1)
    """Documents of each task, to try it out."""
    device: str = "cpu"

    @model_validator(mode="after")
    def _check_work(self) -> EvaluationConfig:
        if not self.datasets and not self.lm_eval_tasks:
            raise ValueError("evaluation measures nothing; give it datasets or lm_eval_tasks, or leave it out")
        return self


class BestConfig(_Config):
    """By what MLflow's alias `best` goes: the trainer's validation loss, or a metric of the evaluation."""

    metric: str = "validation_loss"
    """Or `perplexity/NAME`, `lm_eval/TASK/METRIC`."""
    order: Literal["lowest", "highest"] = "lowest"


class HttpConfig(_Config):
    """Where the status page is. Port 0: a free one. Anywhere but on this machine itself it needs a token."""

    host: str = "127.0.0.1"
    port: int = Field(default=8321, ge=0, le=65535)
    token_file: Path | None = None
    token_environment_variable: str = "SMOLLM2_SERVICE_TOKEN"

    @property
    def is_local(self) -> bool:
        return self.host in LOCAL_HOSTS


class ServiceConfig(_Config):
    """What the service does. `tracking_uri` None: a database beside the runs; `retention` None: nothing is deleted."""

    tracking_uri: str | None = None
    poll_seconds: float = Field(default=30.0, gt=0)
    exports: Literal["newest", "every"] = "newest"
    redraw_seconds: float = Field(default=300.0, ge=0)
    retention: RetentionConfig | None = None
    evaluation: EvaluationConfig | None = None
    best: BestConfig = BestConfig()
    license: str | None = None
    """Of the exported weights, for their model cards, as the hub spells it: apache-2.0."""
    publish_to: tuple[str, ...] = ()
    scrub_bytes_per_second: float | None = Field(default=None, gt=0)
    """Hash old checkpoints again and again, reading at most this much; None: each newest one once."""
    jobs: JobLimits = JobLimits()
    http: HttpConfig = HttpConfig()

    @field_validator("publish_to")
    @classmethod
    def _check_destinations(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not url.startswith(DESTINATIONS):
                raise ValueError(f"{url!r} is no destination; wanted s3://BUCKET/PREFIX, hf://OWNER/NAME or /a/folder")
        return urls

    @model_validator(mode="after")
    def _check_pauses(self) -> ServiceConfig:
        if self.jobs.longest_pause_s < self.jobs.first_pause_s:
            raise ValueError("jobs.longest_pause_s is below jobs.first_pause_s; raise it")
        return self
