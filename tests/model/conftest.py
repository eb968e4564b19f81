"""A model small enough for hundreds of forwards, and its twin in transformers with the same weights."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from model.activation_checkpointing import ActivationCheckpointing
from model.config import SmolLM2Config
from model.init import initialize
from model.parameters import to_huggingface_name
from model.transformer import SmolLM2

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
    # large enough that attention is not uniform, so that a wrong mask or angle shows in the logits
    "initializer_range": 0.2,
}


def tiny_config(**changes: Any) -> SmolLM2Config:
    return SmolLM2Config.model_validate({**SIZES, **changes})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few kilobytes: a second thread costs more than it brings, and its sums are in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class WatchedBytes(TorchDispatchMode):
    """Bytes of the storages that operations return, at their `peak`; a device without memory counts too."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._seen:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._seen.add(storage._cdata)
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, address: int, size_bytes: int) -> None:
        self.held -= size_bytes
        self._seen.discard(address)


@pytest.fixture(scope="session")
def watch_bytes() -> Callable[..., WatchedBytes]:
    """Around work: what it allocates, but for the storages of the tensors that it is given."""
    return WatchedBytes


@pytest.fixture(scope="session")
def sizes() -> dict[str, Any]:
    """The tiny sizes."""
    return SIZES


@pytest.fixture
def make_model() -> Callable[..., SmolLM2]:
    """SmolLM2 of the tiny sizes, changed by keyword, with weights of seed 0."""

    def make(
        *,
        dtype: torch.dtype = torch.float32,
        attn_implementation: str = "auto",
        activation_checkpointing: Any = "none",
        **changes: Any,
    ) -> SmolLM2:
        model = SmolLM2(
            tiny_config(**changes),
            attn_implementation=attn_implementation,
            activation_checkpointing=ActivationCheckpointing.model_validate(activation_checkpointing),
        )
        initialize(model, seed=0)
        return model.to(dtype)

    return make


@pytest.fixture
def make_twin() -> Callable[[SmolLM2], Any]:
    """transformers' LlamaForCausalLM with a model's weights and dtype, configured from transformers' own arguments."""

    def make(model: SmolLM2) -> Any:
        fields = model.config.model_dump()
        rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
        config = transformers.LlamaConfig(**fields, rope_parameters=rope, attn_implementation="eager")
        twin = transformers.LlamaForCausalLM(config).to(model.embed_tokens.weight.dtype)
        weights = {to_huggingface_name(name): tensor for name, tensor in model.state_dict().items()}
        twin.load_state_dict(weights, strict=True)
        return twin

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two rows of 33 ids."""
    return torch.randint(0, SIZES["vocab_size"], (2, 33), generator=torch.Generator().manual_seed(1))
