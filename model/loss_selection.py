"""The computations of the loss, by name, and what each needs in order to run. None is chosen for the user.

chunked   `loss.py`: everywhere, logits in fp32
liger     `liger_loss.py`: Liger's Triton kernels on CUDA, logits rounded to the parameters' dtype
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from model.loss import LossTerms, chunked_loss

NAMES = ("chunked", "liger")


class LossImplementationError(ValueError):
    """A computation of the loss that cannot run here, or that does not exist."""


# (hidden, weight, labels, *, z_loss_coefficient): the contract of `loss.chunked_loss`
ComputeLoss = Callable[..., LossTerms]


def check_name(name: str) -> None:
    """Raises LossImplementationError, one line, for a name that is unknown."""
    if name not in NAMES:
        raise LossImplementationError(f"loss_implementation={name!r} is unknown; take one of {', '.join(NAMES)}")


def check_loss_implementation(name: str, *, device_type: str) -> None:
    """Raises LossImplementationError, one line, for a name that is unknown or cannot run on the device."""
    check_name(name)
    if name != "liger":
        return
    if device_type != "cuda":
        raise LossImplementationError(f"loss_implementation=liger needs a CUDA device, got {device_type}; take chunked")
    if importlib.util.find_spec("liger_kernel") is None:
        raise LossImplementationError(
            "loss_implementation=liger needs the Python package liger-kernel, which is not installed; "
            "install the extra `gpu`, or take chunked"
        )


def bind(name: str, *, device_type: str) -> ComputeLoss:
    """The function that `name` means. Liger is imported here and nowhere else.

    Without gradients it is always the chunked one, which then makes none, so that a validation loss does not depend on
    the choice. Raises LossImplementationError.
    """
    check_loss_implementation(name, device_type=device_type)
    if name == "liger" and torch.is_grad_enabled():
        try:
            from model.liger_loss import liger_loss
        except ImportError as error:
            raise LossImplementationError(
                f"loss_implementation=liger: liger-kernel is installed but does not load ({error}); "
                "install the one of the extra `gpu`, or take chunked"
            ) from None
        return liger_loss
    return chunked_loss
