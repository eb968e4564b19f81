"""What the settings of a run have in common: frozen, no unknown field, no number without end."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    # what YAML may spell as .inf or .nan trains nothing, and shows only at the first step
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
