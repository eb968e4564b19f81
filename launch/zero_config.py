"""The settings of DeepSpeed ZeRO. Part of `config.py`'s `TrainConfig`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from launch.settings import Settings


class ZeroConfig(Settings):
    """Sharded over the ranks: the optimizer's state (stage 1), the gradients too (2), the weights too (3).

    Sizes are in elements, as DeepSpeed counts them; those of prefetching, persistence and live parameters are stage 3's
    alone.
    """

    stage: int = 3
    reduce_bucket_size: int = Field(default=50_000_000, ge=1)
    prefetch_bucket_size: int = Field(default=50_000_000, ge=0)
    param_persistence_threshold: int = Field(default=100_000, ge=0)
    max_live_parameters: int = Field(default=1_000_000_000, ge=1)
    overlap_comm: bool = True
    reduce_dtype: Literal["bfloat16", "float32"] = "float32"  # in which gradients are summed over ranks

    @model_validator(mode="after")
    def _stage_is_known(self) -> Self:
        if self.stage == 0:
            # DeepSpeed 0.19.8, engine.py: "unsupported mix" of bf16 weights and fp32 sums
            raise ValueError(
                "stage=0 is not supported: DeepSpeed trains bfloat16 without ZeRO only with sums in bfloat16; use 1, "
                "which shards the optimizer's state and nothing else"
            )
        if self.stage not in (1, 2, 3):
            raise ValueError(f"stage={self.stage}: there are stages 1, 2 and 3; use 3 unless the weights fit a device")
        return self
