"""Multi-head attention with grouped key/value heads (arXiv:2305.13245); the kernel comes from outside.

MHA, GQA and MQA are the same code: num_key_value_heads equal to, fewer than, or one for num_attention_heads.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from model.attention_backends.selection import Attend
from model.config import SmolLM2Config
from model.layers import Projection
from model.rope import rotate


class Attention(nn.Module):
    """Project, rotate by position, attend, project back."""

    def __init__(self, config: SmolLM2Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Projection(config.hidden_size, query_size)
        self.k_proj = Projection(config.hidden_size, key_value_size)
        self.v_proj = Projection(config.hidden_size, key_value_size)
        self.o_proj = Projection(query_size, config.hidden_size)

    def forward(
        self,
        hidden: Float[Tensor, "batch seq hidden"],
        cosine: Float[Tensor, "batch seq 1 head_dim"],
        sine: Float[Tensor, "batch seq 1 head_dim"],
        attend: Attend,
    ) -> Float[Tensor, "batch seq hidden"]:
        query, key, value = (
            projection(hidden).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = attend(rotate(query, cosine, sine), rotate(key, cosine, sine), value)
        projected: Tensor = self.o_proj(attended.flatten(2))
        return projected
