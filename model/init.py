"""SmolLM2's initial weights, each parameter a pure function of (seed, its name, the config).

Neither the world size nor the order in which parameters are filled changes them, so a trainer may gather and fill one
sharded parameter at a time.

Scales as in nanotron, which trained SmolLM2 (scaling/parametrization.py, StandardParametrizator): normal with
std = initializer_range for the embedding and for what reads the residual stream; divided by sqrt(2 × num_hidden_layers)
for what writes into it (o_proj and down_proj: two branches a layer); norms are 1. An untied head counts as reading.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from model.config import SmolLM2Config
from model.parameters import row_of
from model.transformer import SmolLM2


def initial_std(name: str, config: SmolLM2Config) -> float:
    """Standard deviation of the matrix called `name`; 0 for a norm, which starts as ones."""
    role = row_of(name).role
    if role == "norm":
        return 0.0
    if role == "residual_output":
        return config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    return config.initializer_range


def fill_parameter_(name: str, parameter: Tensor, *, config: SmolLM2Config, seed: int) -> None:
    """Overwrite a whole parameter, on any device and in any dtype, with its initial values.

    Drawn on the CPU in fp32 and rounded afterwards, so that every device and dtype starts from the same numbers.
    Raises KeyError for a name that is not a parameter of the model.
    """
    std = initial_std(name, config)
    with torch.no_grad():
        if std == 0.0:
            parameter.fill_(1.0)
            return
        generator = torch.Generator(device="cpu").manual_seed(_seed_of(name, seed))
        # device named: under zero.Init or a device context the default would be another
        values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        parameter.copy_(values.normal_(0.0, std, generator=generator))


def initialize(model: SmolLM2, *, seed: int) -> None:
    """Fill all parameters of a model that is whole in this process."""
    for name, parameter in model.named_parameters():
        fill_parameter_(name, parameter, config=model.config, seed=seed)


def _seed_of(name: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
