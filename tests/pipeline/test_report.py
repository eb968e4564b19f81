from __future__ import annotations

from pipeline.report import Tally, add_up, add_up_encoding, report_tree
from pipeline.shards.format import EncodingRecord


def tally(*, kept: int, **dropped: int) -> Tally:
    result = Tally(documents_in=kept + sum(dropped.values()), documents_kept=kept, text_bytes_kept=10 * kept)
    for reason, count in dropped.items():
        for index in range(count):
            result.drop(reason, size_bytes=2, location=f"{reason}:{index}", example="…")
    return result


def test_drops_are_counted_by_reason_with_the_first_three_examples() -> None:
    dropped = tally(kept=1, too_short=5).dropped["too_short"]
    assert (dropped.documents, dropped.text_bytes) == (5, 10)
    assert [example.location for example in dropped.examples] == ["too_short:0", "too_short:1", "too_short:2"]


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
    assert len(total.dropped["too_short"].examples) == 3


def test_the_sum_leaves_its_parts_as_they_were() -> None:
    part = tally(kept=1, too_short=1)
    add_up([part, part])
    assert part.dropped["too_short"].documents == 1


def test_the_report_has_totals_and_sources() -> None:
    by_source = {"web": tally(kept=3, too_short=2), "code": tally(kept=1)}
    report = report_tree("mix", by_source, tokens_by_split={"train": 9}, seconds=1.23456, worker_seconds=2.0)
    assert (report["documents_in"], report["documents_kept"], report["text_bytes_kept"]) == (6, 4, 40)
    assert report["sources"]["web"]["dropped"]["too_short"]["documents"] == 2
    assert report["sources"]["code"]["dropped"] == {}
    assert (report["tokens"], report["seconds"]) == ({"train": 9}, 1.235)


def test_encoding_adds_up_by_engine_with_redone_units_apart() -> None:
    fast = EncodingRecord(engine="splintr 1", pieces=10, pieces_checked=2, pieces_by_reference=1)
    redone = EncodingRecord(engine="tokenizers 1", pieces=5, difference="on 'x'")
    plain = EncodingRecord(engine="tokenizers 1", pieces=7)
    assert add_up_encoding([redone, fast, None, plain, fast, redone]) == (
        EncodingRecord(engine="splintr 1", pieces=20, pieces_checked=4, pieces_by_reference=2),
        plain,
        EncodingRecord(engine="tokenizers 1", pieces=10, difference="on 'x'"),
    )
