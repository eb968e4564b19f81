"""Where the documents of a packed batch begin: what positions and attention need to know, worked out once a forward.

A document is a run of equal ids within one row; the same id met again after another is another document. Rows never
share a document. With `document_ids=None` every row is one document.
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F


class Documents:
    """The documents of one batch. What is not asked for is not computed."""

    def __init__(self, input_ids: Int[Tensor, "batch seq"], document_ids: Tensor | None) -> None:
        """document_ids: whole numbers in the shape of input_ids. Raises ValueError for others."""
        if document_ids is not None and document_ids.shape != input_ids.shape:
            raise ValueError(
                f"document_ids has shape {list(document_ids.shape)}, but input_ids has {list(input_ids.shape)}; "
                "give every token the number of its document"
            )
        if document_ids is not None and document_ids.dtype.is_floating_point:
            raise ValueError(
                f"document_ids has dtype {str(document_ids.dtype).removeprefix('torch.')}; number documents by integers"
            )
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
        """Offsets of the documents in the flattened batch, 0 first and batch × seq last, int32 as kernels want it.

        With document_ids a GPU is waited for once, because their number is the tensor's size.
        """
        tokens = self.batch * self.sequence_length
        if self.one_document_a_row:
            return torch.arange(0, tokens + 1, self.sequence_length, dtype=torch.int32, device=self.device)
        offsets = self.starts.flatten().nonzero().flatten()
        return F.pad(offsets, (0, 1), value=tokens).to(torch.int32)
