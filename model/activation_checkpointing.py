"""Which layers keep their activations for the backward pass, and which compute them again: settings only, no torch.

`recomputation.py` does it, `activation_cost.py` says what it costs.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Mode = Literal["none", "full", "every_n_layers", "selective", "deepspeed"]
LayerMode = Literal["none", "full", "selective", "deepspeed"]


class ActivationCheckpointing(BaseModel):
    """A mode's name alone is enough: `full` is `{mode: full}`.

    none            keeps everything
    full            keeps each layer's input and computes the layer again (Chen et al., arXiv:1604.06174)
    every_n_layers  full for each n-th layer, none for the others
    selective       keeps each layer's matrix products and attention output, computes the rest again
    deepspeed       full by DeepSpeed's own function, which can move the inputs to the host

    every_n_layers with selective: full for each n-th layer, selective for the others.

    partition_activations: a rank keeps its share of an input among the model-parallel ranks. This trainer is data
    parallel, a model-parallel group is one rank, and its share is the whole.
    cpu_checkpointing: inputs wait for the backward pass in the host's memory.
    Raises pydantic's ValidationError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    SHORTHAND: ClassVar[str] = "mode"  # the field that a bare text sets

    mode: Mode = "none"
    every_n_layers: int | None = Field(default=None, ge=2)
    partition_activations: bool = False
    cpu_checkpointing: bool = False

    @model_validator(mode="before")
    @classmethod
    def _text_is_the_mode(cls, data: Any) -> Any:
        return {cls.SHORTHAND: data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _settings_belong_to_the_mode(self) -> ActivationCheckpointing:
        if self.mode == "every_n_layers" and self.every_n_layers is None:
            raise ValueError("mode=every_n_layers wants every_n_layers as well, for example 2: each second layer")
        if self.mode not in ("every_n_layers", "selective") and self.every_n_layers is not None:
            raise ValueError(
                f"every_n_layers={self.every_n_layers} means nothing to mode={self.mode}; "
                "set it to null, or take mode=every_n_layers or selective"
            )
        for name in ("partition_activations", "cpu_checkpointing"):
            if getattr(self, name) and self.mode != "deepspeed":
                raise ValueError(
                    f"{name}=true means nothing to mode={self.mode}; set it to false, or take mode=deepspeed"
                )
        return self

    def layer_mode(self, layer_index: int) -> LayerMode:
        """What the layer of this index, counted from 0, does."""
        if self.every_n_layers is not None and (layer_index + 1) % self.every_n_layers == 0:
            return "full"
        return "none" if self.mode == "every_n_layers" else self.mode

    def __str__(self) -> str:
        """For tables: `every 2 layers`; `selective/2` where each second layer is full and the others selective."""
        if self.every_n_layers is None:
            return self.mode
        return f"every {self.every_n_layers} layers" if self.mode != "selective" else f"selective/{self.every_n_layers}"
