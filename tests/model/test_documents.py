from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.documents import Documents

HAND_WORKED = torch.tensor([[7, 7, 7, 2, 2, 7], [5, 5, 5, 5, 5, 5]])


def documents_of(document_ids: torch.Tensor | None, *, like: torch.Tensor = HAND_WORKED) -> Documents:
    return Documents(torch.zeros_like(like), document_ids)


def test_positions_restart_at_each_document() -> None:
    assert documents_of(HAND_WORKED).position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]


def test_positions_count_the_row_without_document_ids() -> None:
    assert documents_of(None).position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_an_id_met_again_is_another_document() -> None:
    assert documents_of(HAND_WORKED).starts[0].tolist() == [True, False, False, True, False, True]
    assert documents_of(HAND_WORKED).may_attend[0, 0, 5].tolist() == [False, False, False, False, False, True]


def test_cumulative_lengths_flatten_the_rows() -> None:
    assert documents_of(HAND_WORKED).cumulative_lengths.tolist() == [0, 3, 5, 6, 12]
    assert documents_of(HAND_WORKED).cumulative_lengths.dtype == torch.int32


def test_rows_never_share_a_document() -> None:
    assert documents_of(torch.ones(2, 6, dtype=torch.long)).cumulative_lengths.tolist() == [0, 6, 12]


def test_one_document_a_row_has_the_offsets_of_the_rows() -> None:
    """Without looking at a token: on a GPU nothing is waited for."""
    documents = documents_of(None)
    assert documents.cumulative_lengths.tolist() == [0, 6, 12]
    assert documents.cumulative_lengths.dtype == torch.int32
    assert "starts" not in vars(documents)


def test_document_ids_of_another_shape_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^document_ids has shape \[2, 5\], but input_ids has \[2, 6\]; give every token"
    ):
        documents_of(HAND_WORKED[:, :5])


def test_document_ids_that_are_no_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^document_ids has dtype float32; number documents by integers$"):
        documents_of(HAND_WORKED.float())


def test_attention_stays_behind_and_inside() -> None:
    assert documents_of(torch.tensor([[1, 1, 2]]), like=torch.zeros(1, 3, dtype=torch.long)).may_attend[
        0, 0
    ].tolist() == [
        [True, False, False],
        [True, True, False],
        [False, False, True],
    ]


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=9, max_size=9), min_size=1, max_size=3))
def test_boundaries_agree_however_they_are_told(rows: list[list[int]]) -> None:
    documents = documents_of(torch.tensor(rows), like=torch.zeros(len(rows), 9, dtype=torch.long))
    runs = []
    for row in rows:
        cuts = [0, *(i for i in range(1, 9) if row[i] != row[i - 1]), 9]
        runs += [end - start for start, end in pairwise(cuts)]
    assert documents.cumulative_lengths.diff().tolist() == runs
    assert documents.position_ids.flatten().tolist() == [position for run in runs for position in range(run)]
    # a token sees itself and what precedes it in its document: position + 1 keys
    assert torch.equal(documents.may_attend.sum(-1)[:, 0], documents.position_ids + 1)
