"""Bytes of activations in one forward and backward pass, by checkpointing mode and kind of attention. No torch.

The layers are those of `transformer.py` as written, or as torch.compile's partitioner keeps them; tests compare the
figures with what torch's allocator counts, of compiled layers with what autograd is handed. Not in them: parameters and
their gradients, what an allocator rounds up, and what a kernel uses within itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.activation_checkpointing import ActivationCheckpointing, LayerMode
from model.attention_backends.sdpa_path import SdpaPath, sdpa_path
from model.config import SmolLM2Config

# What attention keeps for its backward: `eager` its seq² weights; `fused` kernels a number a query; sdpa keeps its keys
# and values `repeated` for each query head where no fused kernel shares them, and so it does with a mask (`masked`).
AttentionKind = Literal["eager", "fused", "repeated", "masked"]
_KIND_OF_PATH: dict[SdpaPath, AttentionKind] = {
    "causal": "fused",
    "causal_repeated": "repeated",
    "by_document": "fused",
    "varlen": "fused",
    "masked": "masked",
}
CHUNK_LOGITS = 1 << 25  # that of `loss.py`, which imports torch; a test holds them equal
_FP32 = 4


@dataclass(frozen=True)
class ActivationBytes:
    """Of one rank. `loss` and `peak` include what is kept when they are reached.

    kept: from the forward pass to the backward pass, in the device's memory
    loss: at the most while the loss and its gradients are computed
    peak: at any time of the pass
    """

    kept: int
    loss: int
    peak: int


def attention_kind(
    attn_implementation: str,
    *,
    device_type: str,
    document_masking: bool,
    dtype_bytes: Literal[2, 4],
    head_dim: int,
    capability: tuple[int, int] | None = None,
) -> AttentionKind:
    """Of a kernel by its name. `auto` is counted as sdpa, which takes no less than the kernel that it may choose."""
    if attn_implementation == "eager":
        return "eager"
    if attn_implementation not in ("sdpa", "auto"):
        return "fused"
    path = sdpa_path(
        device_type=device_type,
        one_document_a_row=not document_masking,
        is_half_precision=dtype_bytes < _FP32,
        head_dim=head_dim,
        capability=capability,
    )
    return _KIND_OF_PATH[path]


def activation_bytes(
    config: SmolLM2Config,
    checkpointing: ActivationCheckpointing,
    *,
    batch_size: int,
    sequence_length: int,
    dtype_bytes: Literal[2, 4],
    attention: AttentionKind,
    device_type: str = "cuda",
    loss_implementation: Literal["chunked", "liger"] = "chunked",
    compiled: bool = False,
    chunk_logits: int = CHUNK_LOGITS,
) -> ActivationBytes:
    """For a micro-batch of `batch_size` sequences; `compiled`: each layer by torch.compile."""
    layer = _Layer(config, batch_size, sequence_length, dtype_bytes, attention, compiled=compiled)
    modes = [checkpointing.layer_mode(index) for index in range(config.num_hidden_layers)]
    kept_by_layer = [0 if checkpointing.cpu_checkpointing else layer.kept(mode) for mode in modes]
    tokens, hidden = batch_size * sequence_length, batch_size * sequence_length * config.hidden_size
    angles = 2 * dtype_bytes * tokens * config.head_dim
    # eager's is of booleans
    mask = {"eager": 1, "masked": dtype_bytes}.get(attention, 0) * batch_size * sequence_length**2
    shared = angles + mask
    final_norm = _FP32 * hidden + dtype_bytes * hidden + _FP32 * tokens
    matrix = config.vocab_size * config.hidden_size
    before_loss = sum(kept_by_layer) + shared + final_norm
    kept = before_loss + dtype_bytes * (hidden + matrix)
    if loss_implementation == "liger":
        loss = before_loss + _liger_loss_bytes(config, tokens, dtype_bytes)
    else:
        loss = before_loss + _loss_bytes(config, tokens, dtype_bytes, device_type, chunk_logits)
    peak = loss
    # autograd holds the head's gradient of a tied matrix until the embedding's is there, at the very end
    held = shared + (dtype_bytes * matrix if config.tie_word_embeddings else 0)
    for index, mode in enumerate(modes):
        below = sum(kept_by_layer[:index]) + held
        peak = max(peak, below + layer.backward(mode))
    return ActivationBytes(kept=kept, loss=loss, peak=peak)


def _loss_bytes(config: SmolLM2Config, tokens: int, dtype_bytes: int, device_type: str, chunk_logits: int) -> int:
    """Hidden states and their gradient, the matrix's gradient in fp32 and as it is returned, and one chunk's logits."""
    chunk_tokens = min(tokens, max(1, chunk_logits // config.vocab_size))
    matrix = config.vocab_size * config.hidden_size
    logits = _FP32 * chunk_tokens * config.vocab_size
    held = 2 * dtype_bytes * tokens * config.hidden_size + _FP32 * matrix
    if dtype_bytes == _FP32:
        return held + logits
    if device_type == "cpu":
        # CPUs multiply fp32 copies of the matrix and of the chunk's hidden states
        return held + logits + _FP32 * (matrix + chunk_tokens * config.hidden_size)
    # a chunk's gradient in half precision beside it, and either the next chunk's logits or the matrix's share in fp32
    beside = max(logits if chunk_tokens < tokens else 0, _FP32 * matrix)
    return held + logits + logits // 2 + beside


def _liger_loss_bytes(config: SmolLM2Config, tokens: int, dtype_bytes: int) -> int:
    """As above by liger-kernel's `ops/fused_linear_cross_entropy.py` (0.8): its chunk's logits are in the parameters'
    dtype and about as many as the hidden states; a chunk's share of the matrix's gradient is made in fp32."""
    chunks = -(-config.vocab_size // config.hidden_size)
    chunk_tokens = min(tokens, 1 << (-(-tokens // chunks) - 1).bit_length())
    matrix = config.vocab_size * config.hidden_size
    held = 2 * dtype_bytes * tokens * config.hidden_size + _FP32 * matrix
    return held + dtype_bytes * chunk_tokens * config.vocab_size + _FP32 * matrix


class _Layer:
    """One decoder layer's bytes."""

    def __init__(
        self,
        config: SmolLM2Config,
        batch_size: int,
        sequence_length: int,
        dtype_bytes: int,
        attention: AttentionKind,
        *,
        compiled: bool,
    ) -> None:
        tokens = batch_size * sequence_length
        self._dtype_bytes, self._attention_kind, self._compiled = dtype_bytes, attention, compiled
        self.input = dtype_bytes * tokens * config.hidden_size
        self._fp32_input = _FP32 * tokens * config.hidden_size
        query = dtype_bytes * tokens * config.num_attention_heads * config.head_dim
        key = dtype_bytes * tokens * config.num_key_value_heads * config.head_dim
        statistics = _FP32 * tokens * config.num_attention_heads
        self._weights = _FP32 * batch_size * config.num_attention_heads * sequence_length**2
        repeated = 2 * (query - key)
        # q, k and v, the result, and what the kernel adds
        self._attention = 2 * query + 2 * key
        self._attention += {
            "fused": statistics,
            "repeated": statistics + repeated,
            "masked": statistics + repeated,
            # softmax in fp32, and its rounding for the product
            "eager": self._weights + (self._weights // 2 if dtype_bytes < _FP32 else 0) + repeated,
        }[attention]
        # its input in fp32, the result before and after the weight, a number a token
        norm = self._fp32_input + 2 * self.input + _FP32 * tokens
        self._intermediate = dtype_bytes * tokens * config.intermediate_size
        # gate, silu(gate), up and their product
        self._mlp = norm + 4 * self._intermediate
        self.everything = norm + self._attention + self._mlp
        fused_result = 0 if attention == "eager" else query + statistics
        self._products = query + 2 * key + fused_result + 2 * self.input + 2 * self._intermediate
        if compiled:
            # what is cheap is computed again: of a norm its result and a number a token are kept, of the feed-forward
            # part gate, up and their product, and of both residual sums what goes into them
            self._mlp = self.input + 3 * self._intermediate
            self.everything = 3 * self.input + 2 * _FP32 * tokens + self._attention + self._mlp
            # nothing takes down_proj's product, and the compiler sees that
            self._products -= self.input

    def kept(self, mode: LayerMode) -> int:
        """Between the passes, on the device."""
        if mode == "none":
            return self.everything
        return self.input + (self._products if mode == "selective" else 0)

    def backward(self, mode: LayerMode) -> int:
        """At the most during the layer's backward: all its activations are there again, and gradients come on top."""
        there = self.everything
        if mode != "none" and not self._compiled:  # a compiled layer keeps neither of these
            # in fp32 the norm keeps the input itself
            there += self.input if self._dtype_bytes < _FP32 else 0
            # down_proj's product has been kept and nothing takes it
            there += self.input if mode == "selective" else 0
        gradients_of_mlp = 2 * self._intermediate + self.input
        peak = there + gradients_of_mlp
        if self._attention_kind == "eager":
            # of the weights and of the scores; the feed-forward part is done by then, and so are the rounded weights
            gradients = 2 * self._weights - (self._weights // 2 if self._dtype_bytes < _FP32 else 0) + 3 * self.input
            peak = max(peak, there - self._mlp + gradients)
        return peak
