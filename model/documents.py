"""Where the documents of a packed batch begin: what positions and attention need to know, worked out once a forward.

A document is a run of equal ids within one row; the same id met again after another is another document. Rows never
share a document. With `document_ids=None` every row is one document.
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Documents:
    """The documents of one batch. What is not asked for is not computed."""

    def __init__(self, input_ids: Int[Tensor, "batch seq"], document_ids: Int[Tensor, "batch seq"] | None) -> None:
        self.batch, self.sequence_length = input_ids.shape
        self.device = input_ids.device
        self.one_document_a_row = document_ids is None
        self._document_ids = document_ids

    @cached_property
    def starts(self) -> Bool[Tensor, "batch seq"]:
        """True at the first token of every document."""
        starts = torch.zeros(self.batch, self.sequence_length, dtype=torch.bool, device=self.device)
        starts[:, :1] = True
        if self._document_ids is not None:
            starts[:, 1:] = self._document_ids[:, 1:] != self._document_ids[:, :-1]
        return starts

    @cached_property
    def position_ids(self) -> Int[Tensor, "batch seq"]:
        """Distance of each token from the first of its document."""
        columns = torch.arange(self.sequence_length, device=self.device).expand(self.batch, -1)
        if self.one_document_a_row:
            return columns
        return columns - torch.where(self.starts, columns, 0).cummax(dim=1).values

    @cached_property
    def may_attend(self) -> Bool[Tensor, "batch 1 query key"]:
        """True where a query may look at a key: in its own document and not after itself."""
        document = self.starts.cumsum(dim=1)
        same = document[:, :, None] == document[:, None, :]
        return torch.tril(same)[:, None]

    @cached_property
    def cumulative_lengths(self) -> Int[Tensor, " documents_plus_one"]:
        """Offsets of the documents in the flattened batch, 0 first and batch × seq last, int32 as kernels want it."""
        offsets = self.starts.flatten().nonzero().flatten()
        end = offsets.new_tensor([self.batch * self.sequence_length])
        return torch.cat((offsets, end)).to(torch.int32)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each document in the order of the flattened batch; on a GPU it waits for the device once."""
        lengths: list[int] = self.cumulative_lengths.diff().tolist()
        return lengths
