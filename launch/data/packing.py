"""Rows of a fixed length cut from the token stream, and the batch that the model trains on.

Sample i of a source with sequences of S positions is ids [i·S, i·S + S + 1) of its stream: the last id is only the
label of the last position, and is the first input of the next sample. So each id of a stream but its first is a label
exactly once an epoch, also the first id of a document that follows another in the row. Every position of every row
counts in the loss, none is masked: all micro-batches hold equally many labels, and the mean of their means is the
mean over the tokens, whatever the number of ranks and accumulation steps.

Nothing is padded or cut to fit. Does not read shards. Imports torch for a batch only: a run's inputs are counted by
`samples_in` before torch is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Place = TypeVar("Place", int, NDArray[np.int64])

IGNORED_LABEL = -100  # what PyTorch's and Hugging Face's losses leave out; only rows that fill up a validation batch


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank; int64 tensors [batch, sequence].

    input_ids: the ids read
    labels: the id that follows each, already shifted
    document_ids: 0, 1, … along each row, the next number after each end-of-sequence id, which itself belongs to the
        document that it ends
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    document_ids: torch.Tensor

    def pinned(self) -> Batch:
        """The same in page-locked memory."""
        return Batch(self.input_ids.pin_memory(), self.labels.pin_memory(), self.document_ids.pin_memory())


def samples_in(total_tokens: int, sequence_length: int) -> int:
    """Samples of an epoch: the last incomplete one is left out."""
    return max(0, total_tokens - 1) // sequence_length


def sample_span(index: Place, sequence_length: int) -> tuple[Place, Place]:
    """First id and the one after the last of a sample, or of many, as places in the stream."""
    start = index * sequence_length
    return start, start + sequence_length + 1


def pack(token_ids: NDArray[np.uint16], *, eos_token_id: int) -> Batch:
    """A batch of rows of S + 1 ids, [batch, sequence + 1]."""
    import torch

    inputs = token_ids[:, :-1]
    ends_before = np.zeros(inputs.shape, dtype=np.int64)
    np.cumsum(inputs[:, :-1] == eos_token_id, axis=1, out=ends_before[:, 1:])
    return Batch(
        input_ids=torch.from_numpy(inputs.astype(np.int64)),
        labels=torch.from_numpy(token_ids[:, 1:].astype(np.int64)),
        document_ids=torch.from_numpy(ends_before),
    )
