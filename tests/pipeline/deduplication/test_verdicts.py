from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.config import PipelineConfig
from pipeline.deduplication.verdicts import UnitVerdicts, unit_verdicts
from pipeline.document import Document, PipelineError


def test_nothing_is_asked_where_nothing_is_deduplicated(make_config: Callable[..., PipelineConfig]) -> None:
    assert unit_verdicts(make_config(), 0) is None


def test_other_documents_than_were_judged_are_an_error(deduplicate: Callable[..., PipelineConfig]) -> None:
    config = deduplicate({"exact": {}}, [["a", "b"]])
    expected = r"unit 0 has other documents now than when it was deduplicated \(2\): its input has changed meanwhile"
    verdicts = UnitVerdicts(config, 0)
    verdicts.judge(Document("0", "a"))
    with pytest.raises(PipelineError, match=expected):
        verdicts.end()
    verdicts.judge(Document("1", "b"))
    verdicts.end()
    with pytest.raises(PipelineError, match=expected):
        verdicts.judge(Document("2", "c"))


def test_a_document_without_removals_is_handed_on_as_it_is(deduplicate: Callable[..., PipelineConfig]) -> None:
    config = deduplicate({"paragraphs": {"min_characters": 3}}, [["abc\nd"], ["abc\ne", "f"]])
    verdicts = UnitVerdicts(config, 1)
    assert verdicts.judge(Document("0", "abc\ne")) == Document("0", "e")
    document = Document("1", "f")
    assert verdicts.judge(document) is document
