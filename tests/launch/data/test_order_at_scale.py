"""The order of a run of 10 trillion tokens over 500 sources on 4,096 ranks, by manifests alone (make test-campaign).

How long it takes to start is measured by `benchmarks/data_order.py`.
"""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from launch.data.loader import PackedSamples, Source
from launch.data.rank_order import rank_sample_indices
from launch.data.schedule import Stage
from pipeline.shards import format as contract

TOKENS, SOURCES, RANKS, SEQUENCE = 10**13, 500, 4096, 2048
SHARD_TOKENS = 1 << 28  # the pipeline's 512 MiB
TOTAL = TOKENS // SEQUENCE

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Manifests of sizes that differ by four orders of magnitude; there is no shard."""
    folder = tmp_path_factory.mktemp("huge")
    shares = np.random.default_rng(1).lognormal(0, 1.5, size=SOURCES)
    made = []
    for number, share in enumerate(shares / shares.sum() * TOKENS):
        dataset = folder / f"source-{number}"
        dataset.mkdir()
        digest = contract.digest_bytes(dataset.name.encode())
        split = contract.split_record(
            contract.ShardRecord(
                path=f"data-{shard:05d}-000.arrow", documents=1000, tokens=SHARD_TOKENS, size_bytes=1, digest=digest
            )
            for shard in range(max(1, round(share / SHARD_TOKENS)))
        )
        tokenizer = contract.TokenizerRecord(digest="-", vocab_size=49_152, eos_token_id=0)
        contract.write_manifest(
            dataset,
            contract.DatasetManifest(
                name=dataset.name,
                tokenizer=tokenizer,
                splits={"train": split},
                documents_in=split.documents,
                text_bytes_kept=0,
                config_digest="-",
            ),
        )
        made.append(Source(dataset.name, dataset, float(share)))
    return made


def order_of(sources: list[Source]) -> PackedSamples:
    """Four stages; the second half of the sources comes from the second on."""
    weights = [np.array([source.weight for source in sources]) * factor for factor in (1.0, 1.0, 1.0, 1.0)]
    weights[0][SOURCES // 2 :] = 0
    weights[3] = np.sqrt(weights[3])
    stages = [
        Stage(end, tuple(stage.tolist()))
        for end, stage in zip((TOTAL // 4, TOTAL // 2, TOTAL * 3 // 4, None), weights, strict=True)
    ]
    return PackedSamples(sources, seed=0, sequence_length=SEQUENCE, stages=stages)


@pytest.fixture(scope="module")
def order(sources: list[Source]) -> PackedSamples:
    return order_of(sources)


def test_its_state_stays_under_50_mb(sources: list[Source]) -> None:
    tracemalloc.start()
    order = order_of(sources)
    order.locate(np.random.default_rng(0).integers(0, TOTAL, 10_000))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"\nheld {held / 1e6:.1f} MB, at most {peak / 1e6:.1f} MB")
    assert peak < 50e6


def test_a_million_random_seeks_collide_nowhere(order: PackedSamples) -> None:
    started_s = time.process_time()
    wanted = np.unique(np.random.default_rng(2).integers(0, TOTAL, 10**6))
    sources, places = order.schedule.locate(wanted)
    _, samples = order.locate(wanted)
    print(f"\n{len(wanted):,} seeks in {time.process_time() - started_s:.2f} s of the processor")
    sizes = np.array(order.sizes)[sources]
    assert samples.min() >= 0
    assert np.all(samples < sizes)
    keys = np.stack([sources, places // sizes, samples])
    assert len(np.unique(keys, axis=1)[0]) == len(wanted)


def test_a_million_samples_in_a_row_of_one_epoch_are_different(order: PackedSamples) -> None:
    for start in (0, TOTAL // 2 - 500_000, TOTAL - 10**6):
        indices = np.arange(start, start + 10**6)
        sources, places = order.schedule.locate(indices)
        _, samples = order.locate(indices)
        epochs = places // np.array(order.sizes)[sources]
        assert len(np.unique(np.stack([sources, epochs, samples]), axis=1)[0]) == 10**6


def test_seeking_back_finds_the_sample(order: PackedSamples) -> None:
    wanted = np.random.default_rng(3).integers(0, TOTAL, 300)
    for index, source, sample in zip(wanted.tolist(), *(found.tolist() for found in order.locate(wanted)), strict=True):
        assert index in order.sightings(source, sample, before=index + 1)


@pytest.mark.parametrize("step", [0, TOTAL // 16384 // 4, TOTAL // 16384 - 1])
def test_4096_ranks_share_a_step_without_overlap(order: PackedSamples, step: int) -> None:
    seen = np.concatenate(
        [
            rank_sample_indices(step, samples_per_step=16384, micro_batch_size=2, rank=rank, world_size=RANKS).ravel()
            for rank in range(RANKS)
        ]
    )
    assert np.array_equal(np.sort(seen), np.arange(step * 16384, (step + 1) * 16384))


def test_the_mixture_holds_at_far_prefixes(order: PackedSamples) -> None:
    for stage, mixture, start in zip(
        order.schedule.stages, order.schedule.mixtures, (0, TOTAL // 4, TOTAL // 2, TOTAL * 3 // 4), strict=True
    ):
        taken = [source for source, weight in enumerate(stage.weights) if weight]
        share = np.array(mixture.weights) / mixture.period
        for length in (1, 1000, 10**6, TOTAL // 8):
            seen = order.schedule.counts(start + length) - order.schedule.counts(start)
            # 1e-3: a count of 10^8 times a share in double precision
            assert np.abs(seen[taken] - length * share).max() < 1 + 1e-3
            assert seen.sum() == length
