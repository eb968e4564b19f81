"""The page as a browser reads it: what it says, and that no corpus can make it do anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PipelineConfig
from pipeline.report import Tally, report_tree
from pipeline.report_page import report_page
from pipeline.run import run
from pipeline.shards.format import EncodingRecord

MakeConfig = Callable[..., PipelineConfig]

HOSTILE = '</q></body><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\x00\u202e'
VOID = {"meta"}


class Page(HTMLParser):
    """Tags, attributes and text; every tag is closed in its turn."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= given.items() for name, given in self.tags)


def tally(*, kept: int, dropped: dict[str, int], text: str = "text", tokens: int = 5) -> Tally:
    result = Tally(documents_in=kept + sum(dropped.values()))
    result.keep(tokens=[tokens] * kept, text_bytes=[10] * kept)
    for reason, count in dropped.items():
        for index in range(count):
            result.drop(reason, size_bytes=2, location=f"{text}:{index}", example=text)
    return result


def report_of(sources: dict[str, Tally], *, name: str = "mix", **more: Any) -> dict[str, Any]:
    return report_tree(
        name,
        sources,
        tokens_by_split={"train": 100, "validation": 3},
        seconds=3700,
        worker_seconds_by_source=dict.fromkeys(sources, 61.0),
        **more,
    )


def test_the_page_says_what_the_report_says() -> None:
    sources = {
        "web": tally(kept=30, dropped={"too_short": 10, "invalid_utf8": 1}),
        "code": tally(kept=9, dropped={}, tokens=3000),
    }
    encoding = [EncodingRecord(engine="splintr 1", pieces=4000, pieces_checked=12, pieces_by_reference=3)]
    page = Page(report_page(report_of(sources, encoding=encoding)))
    # 27,150 tokens, of which code has 27,000; of 50 records 11 are dropped, 10 of the 41 of web for being too short
    for words in ("27.1K", "99.45%", "27,000", "78.0%", "24.4%", "splintr 1", "4,000", "1 h 01 min", "1 min 01 s"):
        assert f"{words}\n" in page.text, words
    assert page.count("svg", **{"class": "histogram"}) == 3
    assert page.count("details") == 2


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = Page(report_page(report_of({"web": tally(kept=1, dropped={"too_short": 1})})))
    assert page.count("script") == page.count("link") == page.count("img") == 0
    assert not any(name in ("src", "href") or name.startswith("on") for _, given in page.tags for name in given)
    policy = {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"}
    assert page.count("meta", **policy) == 1


def test_hostile_text_is_shown_and_does_nothing() -> None:
    sources = {HOSTILE: tally(kept=1, dropped={HOSTILE: 2}, text=HOSTILE)}
    written = report_page(report_of(sources, name=HOSTILE))
    page = Page(written)
    assert page.count("script") == page.count("img") == 0
    assert '<script>alert(1)</script><img src=x onerror="alert(2)">&amp;\\x00\\u202e' in page.text
    assert "\x00" not in written
    assert "\u202e" not in written


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40))
def test_no_text_of_a_corpus_changes_the_elements_of_the_page(text: str) -> None:
    plain = Page(report_page(report_of({"a": tally(kept=1, dropped={"b": 2}, text="c")})))
    other = Page(report_page(report_of({text: tally(kept=1, dropped={text: 2}, text=f"_{text}")}, name=text)))
    assert [tag for tag, _ in plain.tags] == [tag for tag, _ in other.tags]


def test_examples_are_at_most_a_hundred_a_reason_and_from_every_source() -> None:
    sources = {f"s{index}": tally(kept=1, dropped={"too_short": 90}, text=f"<{index}>") for index in range(3)}
    page = Page(report_page(report_of(sources)))
    assert page.count("div", **{"class": "example"}) == 100
    assert [page.text.count(f"s{index} · <{index}>") for index in range(3)] == [34, 33, 33]


def test_many_sources_and_reasons_keep_to_the_colours_there_are() -> None:
    sources = {f"s{index}": tally(kept=20 - index, dropped={f"reason{index}": 1}) for index in range(12)}
    page = Page(report_page(report_of(sources)))
    assert "5 more sources\n" in page.text
    assert "6 more reasons\n" in page.text
    classes = {given["class"] for tag, given in page.tags if tag == "rect"}
    assert classes == {"kept", *(f"c{index}" for index in range(8))}


def test_a_report_of_nothing_is_a_page() -> None:
    assert "Nothing was dropped." in Page(report_page(report_of({"web": Tally()}))).text


def test_a_run_writes_the_page_of_its_report(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config()
    run(config)
    report = json.loads((config.output_dir / "report.json").read_bytes())
    assert (config.output_dir / "report.html").read_text(encoding="utf-8") == report_page(report)
    assert report["tokens_kept"] == sum(report["tokens"].values())
    assert sum(report["histograms"]["documents_by_length"]) == report["documents_kept"] == 120
