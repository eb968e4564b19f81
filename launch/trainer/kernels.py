"""What computes here: the attention and loss kernels and the compiler, tried before any weight is made."""

from __future__ import annotations

import torch

from launch.config import TrainConfig, TrainingError
from launch.trainer.compilation import check_compile
from launch.trainer.engine import DTYPES
from model import loss_selection
from model.attention_backends.selection import AttentionBackendError, bind, resolve
from model.documents import Documents
from model.loss_selection import LossImplementationError


def try_kernels(config: TrainConfig, *, device_type: str, first_step: int = 0) -> str:
    """Tries attention, loss and compiler here; returns the attention kernel by its name, never `auto`. `first_step` is
    that of the checkpoint that the run goes on from.

    Raises TrainingError, in one line, for a kernel, a loss or a way to compile that cannot run here.
    """
    dtype, head_dim = DTYPES[config.precision], config.model.head_dim
    try:
        attention = resolve(config.attn_implementation, device_type=device_type, dtype=dtype, head_dim=head_dim)
        # once in vain: a package that does not load is told here
        loss_selection.bind(config.loss_implementation, device_type=device_type)
        documents = Documents(torch.zeros(1, 1, dtype=torch.long, device=device_type), None)
        bind(attention, documents, dtype=dtype, head_dim=head_dim)
    except (AttentionBackendError, LossImplementationError) as error:
        raise TrainingError(str(error)) from error
    check_compile(config, device_type=device_type, attention=attention, first_step=first_step)
    return attention
