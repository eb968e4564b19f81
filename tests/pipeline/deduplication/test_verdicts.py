from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import PipelineConfig
from pipeline.deduplication.array_file import ArrayFileWriter
from pipeline.deduplication.clusters import number_dtype
from pipeline.deduplication.folder import Folder
from pipeline.deduplication.verdicts import UnitVerdicts, _Removals, unit_verdicts
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


def test_removals_are_searched_for_in_their_own_type(
    deduplicate: Callable[..., PipelineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = deduplicate({"paragraphs": {"min_characters": 3}}, [["abc\nd"], ["abc\ne", "f"]])
    search, kinds = np.searchsorted, []

    def recording(numbers: Any, wanted: Any, **options: Any) -> Any:
        kinds.append((np.asarray(numbers).dtype, np.asarray(wanted).dtype))
        return search(numbers, wanted, **options)

    monkeypatch.setattr(np, "searchsorted", recording)
    verdicts = UnitVerdicts(config, 1)
    verdicts.judge(Document("0", "abc\ne"))
    # of another type numpy would first convert all the numbers, for each document again
    assert set(kinds) == {(np.dtype(np.uint32), np.dtype(np.uint32))}
    assert len(kinds) > 1


@pytest.mark.parametrize("documents", [(1 << 32) - 1, 1 << 32])
def test_the_removals_of_the_last_documents_of_billions_are_found(tmp_path: Path, documents: int) -> None:
    folder = Folder(tmp_path)
    folder.make()
    numbers = np.array([documents - 4, documents - 1], number_dtype(documents))
    with ArrayFileWriter(folder.removals_of(0, 1)) as writer:
        writer.append(document=numbers, place=np.array([5, 7], np.uint32))
        writer.append(document=numbers[:0], place=np.zeros(0, np.uint32))
    section = {"first_document": np.array([documents - 3]), "verdict": np.zeros(3, np.uint8)}
    removals = _Removals(folder, 0, section)
    assert [removals.of(number) for number in range(3)] == [set(), set(), {7}]
