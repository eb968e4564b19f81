"""Steps and evaluations of a compiled model over batches whose documents differ, as JSON for `test_recomputation.py`.

`builds`: how many graphs torch.compile has built after each step and evaluation; `worst_difference`: of any gradient
from that of the same model as written.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from model.activation_checkpointing import ActivationCheckpointing
from model.attention_backends import selection
from model.attention_backends.selection import Attend
from model.config import SmolLM2Config
from model.documents import Documents
from model.init import initialize
from model.transformer import SmolLM2

CONFIG = SmolLM2Config(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=40,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
)
TOKENS = torch.randint(0, CONFIG.vocab_size, (2, 33), generator=torch.Generator().manual_seed(1))
LABELS = TOKENS.roll(-1, 1)
# the first tokens of documents, which differ in number and place from batch to batch
STARTS = ((12,), (5, 20), (1, 2, 3, 30), (28,))


def main() -> None:
    torch.set_num_threads(1)
    modes: dict[str, Any] = {
        "none": "none",
        "full": "full",
        "every_n_layers": {"mode": "every_n_layers", "every_n_layers": 2},
        "selective": "selective",
    }
    results = {name: _measure(mode, backend="aot_eager") for name, mode in modes.items()}
    results["none, inductor"] = _measure("none", backend="inductor")
    eager_bind, selection.bind = selection.bind, _bind_offsets
    results["offsets"] = _measure("none", backend="aot_eager")
    selection.bind = eager_bind
    print(json.dumps(results))


def _measure(mode: Any, *, backend: str) -> dict[str, Any]:
    torch._dynamo.reset()
    counters.clear()
    checkpointing = ActivationCheckpointing.model_validate(mode)
    plain, compiled = (
        SmolLM2(CONFIG, attn_implementation="eager", activation_checkpointing=checkpointing, compile_backend=chosen)
        for chosen in (None, backend)
    )
    builds, worst = [], 0.0
    for model in (plain, compiled):
        initialize(model, seed=0)
    for starts in STARTS:
        document_ids = sum((torch.arange(33) >= start).long() for start in starts).expand_as(TOKENS).contiguous()
        for model in (plain, compiled):
            model.zero_grad()
            model.train()
            model(TOKENS, document_ids=document_ids, labels=LABELS).backward()
            with torch.no_grad():
                model.eval()(TOKENS, document_ids=document_ids, labels=LABELS)
        builds.append(counters["stats"]["unique_graphs"])
        for left, right in zip(plain.parameters(), compiled.parameters(), strict=True):
            assert left.grad is not None
            assert right.grad is not None
            worst = max(worst, float((left.grad - right.grad).abs().max()))
    return {"builds": builds, "worst_difference": worst}


def _bind_offsets(name: str, documents: Documents, *, dtype: torch.dtype) -> Attend:
    """A kernel of the kind of flash attention's for documents: it is told where they begin, however many they are."""
    return Attend(_attend_by_offsets, (documents.cumulative_lengths,))


def _attend_by_offsets(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> Tensor:
    batch, seq, heads, head_dim = query.shape
    document = torch.searchsorted(offsets, torch.arange(batch * seq, dtype=torch.int32), right=True)
    allowed = torch.tril(document[:, None] == document[None, :])
    groups = heads // key.shape[2]
    key, value = (tensor.repeat_interleave(groups, dim=2).flatten(0, 1).transpose(0, 1) for tensor in (key, value))
    scores = query.flatten(0, 1).transpose(0, 1) @ key.transpose(1, 2) * head_dim**-0.5
    attended = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1) @ value
    return attended.transpose(0, 1).view_as(query)


if __name__ == "__main__":
    main()
