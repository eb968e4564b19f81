"""The ids of documents: of their texts, and of the special tokens and texts that a header puts before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.document import Document
from pipeline.shards.format import TOKEN_DTYPE
from pipeline.tokenizer.encode import Encoder
from pipeline.tokenizer.engine import TokenIds


def encode_documents(encoder: Encoder, documents: Sequence[Document]) -> list[TokenIds]:
    """Of each document its ids, ending in EOS. A header's last text and the document's are encoded as one.

    Raises TokenizerError, for a special token that the tokenizer does not have among others.
    """
    if not any(document.header for document in documents):
        return encoder.encode([document.text for document in documents])
    encoded = iter(encoder.encode([text for document in documents for text in _texts_of(document)]))
    return [_join(encoder, document, [next(encoded) for _ in _texts_of(document)]) for document in documents]


def _texts_of(document: Document) -> list[str]:
    """What is encoded at a time: the texts between special tokens."""
    if not document.header:
        return [document.whole_text]
    *before, last = (text for _, text in document.header)
    return [*before, last + document.whole_text]


def _join(encoder: Encoder, document: Document, parts: list[TokenIds]) -> TokenIds:
    if not document.header:
        return parts[0]
    joined: list[TokenIds] = []
    for (token, _), ids in zip(document.header, parts, strict=True):
        # each part ends in an EOS, which the document has at its end only
        joined += [np.array([encoder.special_id(token)], TOKEN_DTYPE), ids[:-1]]
    return np.concatenate([*joined, parts[-1][-1:]])
