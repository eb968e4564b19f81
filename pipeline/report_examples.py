"""The dropped records that the report page shows, behind a line for each reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.markup import Markup, element

# of a reason, over all sources; report.json has those of each source
PAGE_EXAMPLES = 100


def dropped_details(report: Mapping[str, Any]) -> Iterator[Markup]:
    """A line that opens for each reason, the commonest first; the first is open."""
    reasons = sorted(report["dropped"], key=lambda reason: -report["dropped"][reason]["documents"])
    for index, reason in enumerate(reasons):
        shown = list(_examples(report["sources"], reason))
        records = report["dropped"][reason]["documents"]
        told = f" {records:,} records, {len(shown):,} of them here"
        summary = element("summary", element("b", reason), element("span", told))
        # an attribute without a value counts as set
        yield element("details", summary, element("div", *shown, class_="examples"), open="" if index == 0 else None)


def _examples(sources: Mapping[str, Any], reason: str) -> Iterator[Markup]:
    """From every source that has some, as many as the others while they last."""
    queues = [
        (name, tally["dropped"][reason]["examples"]) for name, tally in sources.items() if reason in tally["dropped"]
    ]
    turn = shown = 0
    while any(turn < len(examples) for _, examples in queues):
        for name, examples in queues:
            if turn < len(examples) and shown < PAGE_EXAMPLES:
                shown += 1
                yield _example(name, examples[turn])
        turn += 1


def _example(source: str, example: Mapping[str, str]) -> Markup:
    content = example["content"]
    text = element("q", content) if content else element("q", Markup("<i>empty</i>"))
    return element("div", element("code", f"{source} · {example['location']}"), text, class_="example")
