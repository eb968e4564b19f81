from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention_backends import eager
from model.documents import Documents

GENERATOR_SEED = 0


def test_it_is_the_paper_s_formula() -> None:
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    query = torch.randn(2, 9, 6, 4, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, 9, 3, 4, generator=generator, dtype=torch.float64)
    documents = Documents(torch.zeros(2, 9, dtype=torch.long), None)
    attended = eager.bind(documents, dtype=query.dtype, head_dim=4)(query, key, value)
    # row 1, position 2, query head 5, which shares key/value head 2 with query head 4
    weights = torch.softmax(key[1, :3, 2] @ query[1, 2, 5] / 2.0, dim=0)
    # the softmax of the kernel is fp32
    torch.testing.assert_close(attended[1, 2, 5], weights @ value[1, :3, 2], rtol=0, atol=1e-6)


def test_it_equals_the_formula(against_formula: Any, make_documents: Any, layout: Any) -> None:
    documents = make_documents()
    attend = eager.bind(documents, dtype=torch.float64, head_dim=layout[2])
    against_formula(attend, documents, layout, dtype=torch.float64, tolerance=1e-6)  # its softmax is fp32


@settings(max_examples=40)
@given(data=st.data())
def test_a_document_gives_the_same_alone(boundaries: Any, data: st.DataObject) -> None:
    documents = data.draw(boundaries)
    shape = (documents.batch, documents.sequence_length, 2, 4)
    query, key, value = torch.randn(3, *shape, generator=torch.Generator().manual_seed(GENERATOR_SEED))
    packed = eager.bind(documents, dtype=query.dtype, head_dim=4)(query, key, value).flatten(0, 1)
    alone = []
    lengths = documents.cumulative_lengths.diff().tolist()
    for pieces in zip(*(tensor.flatten(0, 1).split(lengths) for tensor in (query, key, value)), strict=True):
        one = Documents(torch.zeros(1, len(pieces[0]), dtype=torch.long), None)
        alone.append(eager.bind(one, dtype=query.dtype, head_dim=4)(*(piece[None] for piece in pieces))[0])
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-6)  # fp32, sums of another length


def test_a_model_gives_each_document_its_own_logits(packed_and_alone: Any) -> None:
    packed, alone = packed_and_alone("eager")
    torch.testing.assert_close(packed, alone, rtol=0, atol=5e-6)  # fp32, sums in another order


def test_a_compiled_layer_is_built_once(run_program: Any) -> None:
    assert run_program("compiled_layer.py", "eager") == [1] * 6
