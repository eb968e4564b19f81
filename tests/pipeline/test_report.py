from __future__ import annotations

from pipeline.report import Tally, add_up, add_up_encoding, examples_per_unit, report_tree
from pipeline.shards.format import EncodingRecord


def tally(*, kept: int, **dropped: int) -> Tally:
    result = Tally(documents_in=kept + sum(dropped.values()))
    result.keep(tokens=[5] * kept, text_bytes=[10] * kept)
    for reason, count in dropped.items():
        for index in range(count):
            result.drop(reason, size_bytes=2, location=f"{reason}:{index}", example="…")
    return result


def test_drops_are_counted_by_reason_with_the_first_hundred_examples() -> None:
    dropped = tally(kept=1, too_short=130).dropped["too_short"]
    assert (dropped.documents, dropped.text_bytes) == (130, 260)
    assert [example.location for example in dropped.examples] == [f"too_short:{index}" for index in range(100)]


def test_an_example_is_short_whatever_the_corpus_says() -> None:
    result = Tally()
    result.drop("too_long", size_bytes=1, location="id" * 10_000, example="x" * 10_000)
    (example,) = result.dropped["too_long"].examples
    assert (len(example.location), len(example.content)) == (201, 201)


def test_a_unit_records_its_part_of_the_examples() -> None:
    assert [examples_per_unit(units) for units in (1, 3, 100, 5000)] == [100, 34, 1, 1]
    few = tally(kept=1, too_short=5).with_examples(2)
    assert few.dropped["too_short"].documents == 5
    assert [example.location for example in few.dropped["too_short"].examples] == ["too_short:0", "too_short:1"]


def test_kept_documents_are_counted_with_their_tokens() -> None:
    result = Tally()
    result.keep(tokens=[3, 4], text_bytes=[10, 20])
    result.keep(tokens=[], text_bytes=[])
    assert (result.documents_kept, result.tokens_kept, result.text_bytes_kept) == (2, 7, 30)
    assert result.histograms.documents_by_length == [0, 0, 1, 1]


def test_bad_records_are_not_those_that_a_filter_drops() -> None:
    assert tally(kept=1, too_short=5, malformed_json=2, invalid_utf8=1).documents_bad == 3


def test_a_tally_balances_when_in_is_kept_and_dropped() -> None:
    balanced = tally(kept=3, too_short=2)
    assert balanced.is_balanced()
    balanced.documents_in += 1
    assert not balanced.is_balanced()


def test_tallies_add_up() -> None:
    total = add_up([tally(kept=3, too_short=2), tally(kept=4, not_text=1, too_short=2)])
    assert (total.documents_in, total.documents_kept, total.text_bytes_kept) == (12, 7, 70)
    assert {reason: dropped.documents for reason, dropped in total.dropped.items()} == {"not_text": 1, "too_short": 4}
    assert len(total.dropped["too_short"].examples) == 4
    assert total.tokens_kept == sum(total.histograms.tokens_by_length) == 35


def test_a_sum_has_no_more_examples_than_one_source() -> None:
    assert len(add_up([tally(kept=0, too_short=70)] * 3).dropped["too_short"].examples) == 100


def test_the_sum_leaves_its_parts_as_they_were() -> None:
    part = tally(kept=1, too_short=1)
    add_up([part, part])
    assert part.dropped["too_short"].documents == 1


def test_the_report_has_totals_and_sources() -> None:
    by_source = {"web": tally(kept=3, too_short=2), "code": tally(kept=1)}
    report = report_tree(
        "mix",
        by_source,
        tokens_by_split={"train": 20},
        seconds=1.23456,
        worker_seconds_by_source={"web": 2.0, "code": 0.5},
    )
    assert (report["documents_in"], report["documents_kept"], report["text_bytes_kept"]) == (6, 4, 40)
    assert report["sources"]["web"]["dropped"]["too_short"]["documents"] == 2
    assert report["sources"]["code"]["dropped"] == {}
    assert (report["tokens"], report["seconds"]) == ({"train": 20}, 1.235)
    assert (report["worker_seconds"], report["sources"]["web"]["worker_seconds"]) == (2.5, 2.0)


def test_the_report_has_histograms_of_all_and_of_each_source() -> None:
    by_source = {"web": tally(kept=3), "code": tally(kept=1)}
    report = report_tree(
        "mix", by_source, tokens_by_split={}, seconds=1, worker_seconds_by_source={"web": 1, "code": 1}
    )
    # documents of 5 tokens are in the bin from 4 to 6; 4 tokens of 10 bytes are 20 fiftieths
    assert report["histograms"]["documents_by_length"] == [0, 0, 0, 4]
    assert report["histograms"]["tokens_by_length"] == [0, 0, 0, 20]
    assert report["histograms"]["documents_by_tokens_per_byte"] == [*[0] * 20, 4]
    assert report["sources"]["code"]["histograms"]["tokens_by_length"] == [0, 0, 0, 5]
    assert report["histogram_bounds"]["length"] == [1, 2, 3, 4, 6]
    assert report["histogram_bounds"]["tokens_per_byte"][20] == 0.4


def test_examples_stand_with_their_sources_only() -> None:
    report = report_tree(
        "mix",
        {"web": tally(kept=3, too_short=2)},
        tokens_by_split={},
        seconds=1,
        worker_seconds_by_source={"web": 1},
    )
    assert report["dropped"]["too_short"] == {"documents": 2, "text_bytes": 4}
    assert len(report["sources"]["web"]["dropped"]["too_short"]["examples"]) == 2


def test_encoding_adds_up_by_engine_with_redone_units_apart() -> None:
    fast = EncodingRecord(engine="splintr 1", pieces=10, pieces_checked=2, pieces_by_reference=1)
    redone = EncodingRecord(engine="tokenizers 1", pieces=5, difference="on 'x'")
    plain = EncodingRecord(engine="tokenizers 1", pieces=7)
    assert add_up_encoding([redone, fast, None, plain, fast, redone]) == (
        EncodingRecord(engine="splintr 1", pieces=20, pieces_checked=4, pieces_by_reference=2),
        plain,
        EncodingRecord(engine="tokenizers 1", pieces=10, difference="on 'x'"),
    )
