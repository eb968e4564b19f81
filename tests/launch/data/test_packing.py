"""Rows, labels and document numbers, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from launch.data.packing import pack, sample_span, samples_in

ROWS = np.array([[5, 6, 0, 7, 8], [0, 0, 9, 0, 3]], dtype=np.uint16)


def test_labels_are_the_ids_that_follow():
    batch = pack(ROWS, eos_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 0, 7], [0, 0, 9, 0]]
    assert batch.labels.tolist() == [[6, 0, 7, 8], [0, 9, 0, 3]]


def test_the_end_belongs_to_the_document_that_it_ends():
    batch = pack(ROWS, eos_token_id=0)
    assert batch.document_ids.tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_another_end_of_sequence_id_is_honoured():
    assert pack(ROWS, eos_token_id=6).document_ids.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


def test_tensors_are_int64_and_contiguous():
    batch = pack(ROWS, eos_token_id=0)
    for tensor in (batch.input_ids, batch.labels, batch.document_ids):
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()


def test_ids_above_the_signed_range_stay_positive():
    assert pack(np.array([[65_535, 40_000, 1]], dtype=np.uint16), eos_token_id=0).input_ids.tolist() == [
        [65_535, 40_000]
    ]


def test_a_sample_needs_one_id_more_than_its_positions():
    assert [samples_in(tokens, 4) for tokens in (0, 1, 4, 5, 8, 9)] == [0, 0, 0, 1, 1, 2]


def test_samples_share_one_id():
    assert sample_span(0, 4) == (0, 5)
    assert sample_span(1, 4) == (4, 9)


@pytest.mark.gpu
def test_pinned_batches_are_equal_and_page_locked():
    batch = pack(ROWS, eos_token_id=0)
    pinned = batch.pinned()
    for tensor, own in ((pinned.input_ids, batch.input_ids), (pinned.labels, batch.labels)):
        assert tensor.is_pinned()
        assert tensor.to("cuda", non_blocking=True).cpu().equal(own)
    assert pinned.document_ids.is_pinned()
