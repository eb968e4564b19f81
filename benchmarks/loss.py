"""What the loss costs from hidden states to their gradients, beside transformers' logits and cross-entropy.

    python benchmarks/loss.py [--tokens 2048] [--rounds 3] [--dtype float32]

SmolLM2-135M's head: hidden size 576, vocabulary 49,152. Processor seconds of forward and backward, the least of the
rounds, which alternate; peak bytes that torch allocates for one, its two gradients among them; and how far loss and
gradients are from those of float64.
"""

from __future__ import annotations

import argparse
import resource
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.loss.loss_utils import ForCausalLMLoss

from model.loss import chunked_loss

HIDDEN, VOCABULARY = 576, 49_152
Tensors = tuple[torch.Tensor, ...]
Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class PeakBytes(TorchDispatchMode):
    """Bytes of the storages that operators make, at their most."""

    def __init__(self, known: Tensors) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, address: int, size: int) -> None:
        self.held -= size
        self._seen.discard(address)


def transformers_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As LlamaForCausalLM computes it."""
    logits = torch.nn.functional.linear(hidden[None], weight)
    loss: torch.Tensor = ForCausalLMLoss(logits, None, VOCABULARY, shift_labels=labels[None])
    return loss


def our_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return chunked_loss(hidden, weight, labels).total


COMPUTATIONS: dict[str, Compute] = {"ours": our_loss, "transformers": transformers_loss}


def run(compute: Compute, inputs: Tensors) -> Tensors:
    """The loss and the two gradients."""
    hidden, weight, labels = inputs
    loss = compute(hidden, weight, labels)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def exact(inputs: Tensors) -> Tensors:
    """In float64, a few tokens at a time."""
    hidden, weight, labels = inputs
    return run(
        lambda *tensors: chunked_loss(*tensors, chunk_logits=64 * VOCABULARY).total,
        (hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), labels),
    )


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, options.dtype)
    inputs = (
        torch.randn(options.tokens, HIDDEN, generator=generator).to(dtype).requires_grad_(),
        (torch.randn(VOCABULARY, HIDDEN, generator=generator) / 24).to(dtype).requires_grad_(),
        torch.randint(0, VOCABULARY, (options.tokens,), generator=generator),
    )
    seconds: dict[str, list[float]] = {name: [] for name in COMPUTATIONS}
    for _ in range(options.rounds):
        for name, compute in COMPUTATIONS.items():
            started_s = processor_seconds()
            run(compute, inputs)
            seconds[name].append(processor_seconds() - started_s)
    wanted = exact(inputs)
    print(f"{options.tokens} tokens, {options.dtype}, one thread, {options.rounds} rounds")
    print(
        f"{'':14}{'CPU s (least … most)':>24}{'peak MB':>10}{'loss off by':>14}{'gradients off by (relative norm)':>36}"
    )
    for name, compute in COMPUTATIONS.items():
        with PeakBytes(inputs) as watch:
            got = run(compute, inputs)
        times = f"{min(seconds[name]):.2f} … {max(seconds[name]):.2f}"
        off = [float((one.double() - other).norm() / other.norm()) for one, other in zip(got, wanted, strict=True)]
        gradients = f"{off[1]:.1e}, {off[2]:.1e}"
        print(f"{name:14}{times:>24}{watch.peak / 1e6:10.0f}{abs(float(got[0] - wanted[0])):14.1e}{gradients:>36}")


if __name__ == "__main__":
    main()
