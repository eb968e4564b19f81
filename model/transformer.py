"""SmolLM2: a pre-norm decoder of grouped-query attention and SwiGLU blocks, as one module.

Names of parameters are Hugging Face's without the leading `model.`. Runs as it is under DeepSpeed ZeRO-3: no buffers,
every parameter used only inside the forward of the module that owns it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from model import loss_selection
from model.activation_checkpointing import ActivationCheckpointing, Mode
from model.attention import Attention
from model.attention_backends import selection
from model.config import SmolLM2Config
from model.documents import Documents
from model.layers import Embedding, RMSNorm, SwiGLU
from model.loss import LossTerms
from model.recomputation import CheckpointFunction, Compute, layer_functions
from model.rope import rotary_angles


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    `run` is `compute`, or `compute` made to recompute or compiled: inside of whatever hooks an engine puts on a layer.
    """

    def __init__(self, config: SmolLM2Config, *, run: Compute | None = None) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SwiGLU(config)
        self.run: Compute = run or DecoderLayer.compute

    def forward(
        self,
        hidden: Float[Tensor, "batch seq hidden"],
        cosine: Float[Tensor, "batch seq 1 head_dim"],
        sine: Float[Tensor, "batch seq 1 head_dim"],
        attend: selection.Attend,
    ) -> Float[Tensor, "batch seq hidden"]:
        return self.run(self, hidden, cosine, sine, attend)

    def compute(
        self,
        hidden: Float[Tensor, "batch seq hidden"],
        cosine: Float[Tensor, "batch seq 1 head_dim"],
        sine: Float[Tensor, "batch seq 1 head_dim"],
        attend: selection.Attend,
    ) -> Float[Tensor, "batch seq hidden"]:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cosine, sine, attend)
        added: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return added


class LanguageModelHead(nn.Module):
    """Logits, or the loss directly: in this module's forward, where ZeRO-3 has gathered the matrix once for both."""

    def __init__(self, config: SmolLM2Config, *, tied: Tensor | None, loss_implementation: str) -> None:
        super().__init__()
        shape = (config.vocab_size, config.hidden_size)
        self.weight = nn.Parameter(torch.full(shape, torch.nan)) if tied is None else tied
        self.loss_implementation = loss_implementation

    def forward(
        self,
        hidden: Float[Tensor, "batch seq hidden"],
        labels: Int[Tensor, "batch seq"] | None = None,
        z_loss_coefficient: float | None = None,
    ) -> Float[Tensor, "batch seq vocab"] | Float[Tensor, ""] | LossTerms:
        if labels is None:
            return F.linear(hidden, self.weight)
        compute_loss = loss_selection.bind(self.loss_implementation, device_type=hidden.device.type)
        terms = compute_loss(
            hidden.flatten(0, 1), self.weight, labels.flatten(), z_loss_coefficient=z_loss_coefficient or 0.0
        )
        return terms.total if z_loss_coefficient is None else terms


class SmolLM2(nn.Module):
    """The model of `config`. Its parameters are NaN until `init.initialize` or a checkpoint fills them.

    attn_implementation: a name of `attention_backends.selection.NAMES`; `auto` looks at device and dtype.
    activation_checkpointing: its settings, or a mode's name; `deepspeed` wants DeepSpeed's `deepspeed_checkpoint`.
    compile_backend: `inductor`, or another backend of torch.compile, builds the decoder layer; None: runs as written.
    loss_implementation: a name of `loss_selection.NAMES`.
    Raises AttentionBackendError or LossImplementationError for a name that is not there.
    """

    def __init__(
        self,
        config: SmolLM2Config,
        *,
        attn_implementation: str = "auto",
        activation_checkpointing: ActivationCheckpointing | Mode = "none",
        compile_backend: str | None = None,
        deepspeed_checkpoint: CheckpointFunction | None = None,
        loss_implementation: str = "chunked",
    ) -> None:
        super().__init__()
        selection.check_name(attn_implementation)
        loss_selection.check_name(loss_implementation)
        self.config = config
        self.attn_implementation = attn_implementation
        self.activation_checkpointing = ActivationCheckpointing.model_validate(activation_checkpointing)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        functions = layer_functions(
            DecoderLayer.compute,
            self.activation_checkpointing,
            num_layers=config.num_hidden_layers,
            compile_backend=compile_backend,
            deepspeed_checkpoint=deepspeed_checkpoint,
        )
        self.layers = nn.ModuleList(DecoderLayer(config, run=function) for function in functions)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = LanguageModelHead(
            config,
            tied=self.embed_tokens.weight if config.tie_word_embeddings else None,
            loss_implementation=loss_implementation,
        )

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        *,
        document_ids: Int[Tensor, "batch seq"] | None = None,
        labels: Int[Tensor, "batch seq"] | None = None,
        z_loss_coefficient: float | None = None,
    ) -> Float[Tensor, "batch seq vocab"] | Float[Tensor, ""] | LossTerms:
        """Logits, or with labels the mean cross-entropy in fp32.

        document_ids: numbers the packed documents; attention does not cross them and positions restart.
            None: every row is one document.
        labels: the next token of each input, already shifted; −100 is ignored.
        z_loss_coefficient: with a number the result is `LossTerms`, whose `total` holds the z-loss too.
        Raises ValueError for a sequence longer than the model's positions.
        """
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence of {input_ids.shape[1]} tokens, but the model has max_position_embeddings="
                f"{self.config.max_position_embeddings}; shorten the sequence or raise it in the model's config"
            )
        hidden = self.embed_tokens(input_ids)
        documents = Documents(input_ids, document_ids)
        attend = selection.bind(self.attn_implementation, documents, dtype=hidden.dtype, head_dim=self.config.head_dim)
        cosine, sine = rotary_angles(
            documents.position_ids, head_dim=self.config.head_dim, theta=self.config.rope_theta, dtype=hidden.dtype
        )
        for layer in self.layers:
            hidden = layer(hidden, cosine, sine, attend)
        result: Tensor | LossTerms = self.lm_head(self.norm(hidden), labels, z_loss_coefficient)
        return result
