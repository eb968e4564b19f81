"""Tracing against documents packed in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from launch.data.loader import PackedSamples, Source
from launch.data.schedule import Stage
from launch.data.trace import document_batches, documents_in, trace_samples

SEQUENCE = 8


@pytest.fixture(scope="module")
def documents(random_documents):
    return {"web": random_documents(60, seed=1), "code": random_documents(25, seed=2)}


@pytest.fixture(scope="module")
def samples(tmp_path_factory, make_dataset, documents):
    """Shards of 20 documents in record batches of 7, over two stages."""
    folder = tmp_path_factory.mktemp("traced")
    sources = [
        Source(name, make_dataset(folder / name, rows, documents_per_shard=20, documents_per_batch=7), 1.0)
        for name, rows in documents.items()
    ]
    return PackedSamples(sources, seed=5, sequence_length=SEQUENCE, stages=[Stage(100, (3, 1)), Stage(None, (1, 1))])


def tokens_of(documents, source, span):
    """The ids that a span names, from the documents as they were written."""
    _, shard, row = span.document_id.split("-")
    document = [*documents[source][int(shard) * 20 + int(row)], 0]
    assert span.shard == f"data-{int(shard):05d}-000.arrow"
    assert span.tokens == len(document)
    return document[span.start : span.stop]


def test_the_documents_of_a_sample_give_its_ids(samples, documents):
    indices = range(0, 400, 3)
    batch = samples.read(np.array(indices))
    for row, trace in enumerate(trace_samples(samples, indices)):
        ids = [token for span in trace.documents for token in tokens_of(documents, trace.source, span)]
        assert ids == [*batch.input_ids[row].tolist(), int(batch.labels[row, -1])]


def test_epochs_and_stream_samples_are_those_of_the_order(samples):
    traced = trace_samples(samples, range(400))
    for source, size in zip(samples.sources, samples.sizes, strict=True):
        own = [trace for trace in traced if trace.source == source.name]
        for epoch in range(len(own) // size):
            assert sorted(trace.sample for trace in own if trace.epoch == epoch) == list(range(size))


def test_every_span_of_a_stream_is_found(samples, documents):
    stream = samples.streams[1]
    whole = [token for document in documents["code"] for token in [*document, 0]]
    for start in range(0, stream.total_tokens - 1, 17):
        for stop in (start + 1, min(start + 60, stream.total_tokens), stream.total_tokens):
            spans = documents_in(stream, start, stop)
            assert [token for span in spans for token in tokens_of(documents, "code", span)] == whole[start:stop]


@pytest.mark.parametrize("document_id", ["train-0-0", "train-0-13", "train-1-4", "train-2-19"])
def test_the_batches_of_a_document_are_those_whose_trace_has_it(samples, document_id):
    steps, samples_per_step = 60, 6
    traced = trace_samples(samples, range(steps * samples_per_step))
    expected = {
        trace.index // samples_per_step
        for trace in traced
        if any(span.document_id == document_id for span in trace.documents)
    }
    assert document_batches(samples, document_id, samples_per_step=samples_per_step, batches=steps) == sorted(expected)
    assert expected


def test_a_document_of_no_dataset_is_none(samples):
    assert document_batches(samples, "nobody", samples_per_step=6, batches=10) is None
