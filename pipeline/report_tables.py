"""The tables of the report page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.charts import share_bar
from pipeline.histograms import length_bound
from pipeline.markup import Markup, element
from pipeline.quantities import duration, share, short_number

# training sequences are of such lengths
SEQUENCE_LENGTHS = (512, 1024, 2048, 4096, 8192, 32_768)

# sources that have a column of the table of reasons; more would not fit a page
MAX_COLUMNS = 8


def source_table(report: Mapping[str, Any]) -> Markup:
    """Sources by their share of the tokens."""
    sources: Mapping[str, Any] = report["sources"]
    total = max(1, report["tokens_kept"])
    largest = max((tally["tokens_kept"] for tally in sources.values()), default=0)
    rows = []
    for name, tally in sorted(sources.items(), key=lambda item: -item[1]["tokens_kept"]):
        tokens, documents = tally["tokens_kept"], tally["documents_kept"]
        bar = share_bar([(f"{name}: {tokens:,} tokens", tokens / max(1, largest), "c0")])
        cells = [
            f"{tokens:,}",
            f"{documents:,}",
            short_number(tokens / max(1, documents)),
            f"{tally['text_bytes_kept'] / max(1, tokens):.2f}",
            duration(tally["worker_seconds"]),
        ]
        rows.append(
            [element("td", name), element("td", share(tokens, total), class_="n"), element("td", bar, class_="bar")]
            + [element("td", cell, class_="n") for cell in cells]
        )
    heads = [element("th", "source"), element("th", "share", class_="n"), element("th", "")]
    names = ("tokens", "documents", "tokens a document", "bytes a token", "worker time")
    return _table([*heads, *(element("th", name, class_="n") for name in names)], rows)


def reason_table(report: Mapping[str, Any]) -> Markup:
    """Reasons by sources: the share of a source's records, the darker the larger."""
    sources: Mapping[str, Any] = report["sources"]
    columns = sorted(sources, key=lambda name: -sources[name]["documents_in"])[:MAX_COLUMNS]
    rows = []
    for reason, entry in sorted(report["dropped"].items(), key=lambda item: -item[1]["documents"]):
        cells = [_heat(entry["documents"], report["documents_in"])] if len(sources) > 1 else []
        for name in columns:
            dropped = sources[name]["dropped"].get(reason)
            cells.append(_heat(0 if dropped is None else dropped["documents"], sources[name]["documents_in"]))
        figures = [element("td", f"{entry[key]:,}", class_="n") for key in ("documents", "text_bytes")]
        rows.append([element("td", reason), *figures, *cells])
    names = ["all sources"] if len(sources) > 1 else []
    heads = [element("th", name, class_="n") for name in ("records", "bytes", *names, *columns)]
    return _table([element("th", "reason"), *heads], rows)


def encoding_table(records: Sequence[Mapping[str, Any]]) -> Markup:
    """Engines: what they encoded, and what a comparison with the reference said."""
    rows = []
    for record in records:
        difference = record["difference"]
        rows.append(
            [
                element("td", record["engine"]),
                *(element("td", f"{record[key]:,}", class_="n") for key in _PIECES),
                element("td", "none" if difference is None else f"units were done again: {difference}"),
            ]
        )
    counts = [element("th", name, class_="n") for name in ("pieces", "checked", "left to the reference")]
    return _table([element("th", "engine"), *counts, element("th", "difference")], rows)


def length_table(histograms: Mapping[str, Sequence[int]]) -> Markup:
    """What a training sequence of a usual length holds: how many documents, and tokens, are in longer ones. Exact, as
    those lengths are bounds of bins."""
    documents, tokens = histograms["documents_by_length"], histograms["tokens_by_length"]
    rows = []
    for length in SEQUENCE_LENGTHS:
        first = next(k for k in itertools.count() if length_bound(k) == length)
        cells = [share(sum(counts[first:]), sum(counts)) for counts in (documents, tokens)]
        rows.append(
            [element("td", f"at least {length:,} tokens"), *(element("td", cell, class_="n") for cell in cells)]
        )
    heads = [element("th", name, class_="n") for name in ("documents", "tokens in them")]
    return _table([element("th", ""), *heads], rows)


_PIECES = ("pieces", "pieces_checked", "pieces_by_reference")


def _heat(part: int, whole: int) -> Markup:
    # a square root, so that one in a hundred can be seen beside a half
    opacity = round(0.75 * (part / max(1, whole)) ** 0.5, 3)
    style = f"background:rgba(var(--heat),{opacity})" if part else None
    return element("td", share(part, whole) if part else "·", class_="n", style=style)


def _table(heads: Sequence[Markup], rows: Sequence[Sequence[Markup]]) -> Markup:
    return element(
        "div", element("table", element("tr", *heads), *(element("tr", *row) for row in rows)), class_="scroll"
    )
