"""`report.html`: what is in `report.json`, for a person. One file, no script, nothing loaded from elsewhere.

A pure function of the report. What corpora brought in (ids, examples, names) is hostile text: `markup` escapes it, and
the page forbids scripts and requests by its own policy besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pipeline.charts import COLOURS, Axis, Series, legend, share_bar, stacked_histogram
from pipeline.histograms import TOKENS_PER_BYTE_BINS, length_bound
from pipeline.markup import Markup, element, join
from pipeline.quantities import binary_number, duration, share, short_number
from pipeline.report_examples import dropped_details
from pipeline.report_style import STYLE
from pipeline.report_tables import MAX_COLUMNS, encoding_table, length_table, reason_table, source_table

# of the commonest reasons; the green is that of what is kept, and grey is all the others'
REASON_COLOURS = ("c1", "c5", "c0", "c3", "c4", "c6")

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def report_page(report: Mapping[str, Any]) -> str:
    """The page of the contents of a `report.json`."""
    head = element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", f"{report['name']}: data report"),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element("h1", str(report["name"])),
        element("p", "What was read, kept and dropped. The same figures are in report.json.", class_="said"),
        _tiles(report),
        *_where_records_went(report),
        *_sources(report),
        *_histograms(report["sources"], report["histograms"]),
        *_dropped(report),
        *_encoding(report),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _tiles(report: Mapping[str, Any]) -> Markup:
    tokens, documents, text_bytes = report["tokens_kept"], report["documents_kept"], report["text_bytes_kept"]
    splits = ", ".join(f"{short_number(count)} {split}" for split, count in report["tokens"].items())
    per_second = tokens / max(report["worker_seconds"], 1e-9)
    figures = [
        ("tokens", short_number(tokens), splits),
        ("documents", short_number(documents), f"{share(documents, report['documents_in'])} of the records read"),
        ("bytes of text", short_number(text_bytes), f"{text_bytes / max(1, tokens):.2f} a token"),
        ("tokens a document", short_number(tokens / max(1, documents)), "mean, EOS counted"),
        ("last attempt", duration(report["seconds"]), f"{duration(report['worker_seconds'])} of workers in all"),
        ("tokens a second", short_number(per_second), "of one worker"),
    ]
    return element(
        "div",
        *(
            element("div", element("b", value), element("span", name), element("i", more), class_="tile")
            for name, value, more in figures
        ),
        class_="tiles",
    )


def _where_records_went(report: Mapping[str, Any]) -> Iterator[Markup]:
    """A line a source: the share kept, then the shares dropped, the commonest reasons by colour."""
    sources: Mapping[str, Any] = report["sources"]
    reasons = sorted(report["dropped"], key=lambda reason: -report["dropped"][reason]["documents"])
    colour_of = dict(zip_longest(reasons, REASON_COLOURS[: len(reasons)], fillvalue="c7"))
    yield element("h2", "Where the records went")
    own = len(REASON_COLOURS)
    more = [(f"{len(reasons) - own} more reasons", "c7")] if len(reasons) > own else []
    yield legend([("kept", "kept"), *list(colour_of.items())[:own], *more])
    rows = []
    for name, tally in [*sources.items(), *([("all sources", report)] if len(sources) > 1 else [])]:
        parts = [("kept", tally["documents_kept"], "kept")]
        parts += [
            (reason, tally["dropped"][reason]["documents"], colour_of[reason])
            for reason in reasons
            if reason in tally["dropped"]
        ]
        total = max(1, tally["documents_in"])
        bar = share_bar([(f"{what}: {count:,} ({share(count, total)})", count / total, c) for what, count, c in parts])
        rows.append(
            element(
                "tr",
                element("td", name),
                element("td", f"{tally['documents_in']:,}", class_="n"),
                element("td", share(tally["documents_kept"], total), class_="n"),
                element("td", bar, style="width:62%"),
                class_="total" if tally is report else None,
            )
        )
    heads = join(
        [
            element("th", "source"),
            element("th", "records", class_="n"),
            element("th", "kept", class_="n"),
            element("th", ""),
        ]
    )
    yield element("div", element("table", element("tr", heads), *rows), class_="scroll")


def _sources(report: Mapping[str, Any]) -> Iterator[Markup]:
    yield element("h2", "Share of tokens by source")
    yield source_table(report)


def _histograms(sources: Mapping[str, Any], total: Mapping[str, Any]) -> Iterator[Markup]:
    yield element("h2", "Documents")
    grouped = _grouped(sources)
    if len(grouped) > 1:
        yield legend([(name, f"c{index % COLOURS}") for index, (name, _) in enumerate(grouped)])
    cards = [
        ("Documents by length", "documents", "documents_by_length", _length_axis),
        ("Tokens by length of their document", "tokens", "tokens_by_length", _length_axis),
        ("Documents by tokens a byte", "documents", "documents_by_tokens_per_byte", _tokens_per_byte_axis),
    ]
    drawn = []
    for title, unit, key, make_axis in cards:
        counts = [(name, _sum([one[key] for one in members])) for name, members in grouped]
        bins = max((len(one) for _, one in counts), default=0)
        filled = [(name, [*one, *[0] * (bins - len(one))]) for name, one in counts]
        first = next((k for k in range(bins) if any(one[k] for _, one in filled)), 0)
        series = [Series(name, one[first:]) for name, one in filled]
        picture = stacked_histogram(series, axis=make_axis(first, bins), unit=unit)
        drawn.append(element("div", element("h3", title), picture, class_="card"))
    long_documents = element("div", element("h3", "Long documents"), length_table(total), class_="card")
    yield element("div", *drawn, long_documents, class_="cards")


def _length_axis(first: int, end: int) -> Axis:
    return Axis("tokens (1K is 1,024)", [binary_number(length_bound(k)) for k in range(first, end + 1)], ticks_every=2)


def _tokens_per_byte_axis(first: int, end: int) -> Axis:
    bounds = [f"{k / TOKENS_PER_BYTE_BINS:.2f}" for k in range(first, end + 1)]
    if end > TOKENS_PER_BYTE_BINS:
        bounds[-1] = "more"
    return Axis("tokens a byte", bounds, ticks_every=max(1, len(bounds) // 8))


def _grouped(sources: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The histograms of each source, the largest first; of those beyond the colours there are, together."""
    largest = sorted(sources, key=lambda name: -sources[name]["tokens_kept"])
    alone = largest if len(largest) <= COLOURS else largest[: COLOURS - 1]
    groups = [(name, [sources[name]["histograms"]]) for name in alone]
    if rest := largest[len(alone) :]:
        groups.append((f"{len(rest)} more sources", [sources[name]["histograms"] for name in rest]))
    return groups


def _sum(lists: Sequence[Sequence[int]]) -> list[int]:
    longest = max((len(one) for one in lists), default=0)
    return [sum(one[k] for one in lists if k < len(one)) for k in range(longest)]


def _dropped(report: Mapping[str, Any]) -> Iterator[Markup]:
    yield element("h2", "Dropped")
    if not report["dropped"]:
        yield element("p", "Nothing was dropped.", class_="said")
        return
    sources = len(report["sources"])
    whose = f"the {MAX_COLUMNS} largest of {sources} sources'" if sources > MAX_COLUMNS else "each source's"
    yield element("p", f"Share of {whose} records, by reason; behind each reason some of them.", class_="said")
    yield reason_table(report)
    yield from dropped_details(report)


def _encoding(report: Mapping[str, Any]) -> Iterator[Markup]:
    if report["encoding"]:
        yield element("h2", "Encoding")
        yield element(
            "p",
            "Pieces are documents or parts of long ones; those checked were compared with the reference's ids.",
            class_="said",
        )
        yield encoding_table(report["encoding"])
