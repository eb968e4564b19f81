"""The passes in this process, over documents that are given as lists, a list a unit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import PipelineConfig
from pipeline.deduplication import matching, passes, signatures
from pipeline.deduplication.verdicts import UnitVerdicts
from pipeline.document import Document
from pipeline.executors import Finished
from pipeline.plan import Plan, Unit
from pipeline.report import Tally


def run_here(settings: object, make_task: Callable[[], Any], items: Sequence[Any]) -> Iterator[Finished[Any]]:
    """As `execute`, the last item first: nothing may depend on the order."""
    task = make_task() if items else None
    for item in reversed(items):
        assert task is not None
        yield Finished(task(item, lambda news: None))


@pytest.fixture(scope="session")
def deduplicate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PipelineConfig]:
    """`deduplicate(sections, [["text", …], …])`: the passes over the texts of some units, in a folder of their own."""

    def run(
        sections: dict[str, Any],
        units: Sequence[Sequence[str]],
        *,
        partition_rows: int = 3,
        dataset: Path | None = None,
    ) -> PipelineConfig:
        config = PipelineConfig.model_validate(
            {
                "name": "test",
                "output_dir": dataset or tmp_path_factory.mktemp("dataset"),
                "sources": [{"name": "corpus", "type": "text", "files": ["none"]}],
                "tokenizer": {"path": "none"},
                "deduplication": sections,
            }
        )
        plan = Plan(tuple(Unit(index, "corpus", ()) for index in range(len(units))))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of small files
            patch.setattr(passes, "execute", run_here)
            patch.setattr(signatures, "SECTION_DOCUMENTS", 2)
            patch.setattr(signatures, "SECTION_PARAGRAPHS", 3)
            patch.setattr(signatures, "_BATCH_CHARACTERS", 20)
            patch.setattr(matching, "PARTITION_ROWS", partition_rows)
            patch.setattr(passes, "UnitReader", lambda config, unit: _Reader(units[unit.index]))
            passes.deduplicate(config, plan)
        return config

    return run


class _Reader:
    """In the place of UnitReader: documents are named by their number in the unit."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.tally = Tally()
        self.records_read = len(texts)
        self._texts = texts

    def __iter__(self) -> Iterator[SimpleNamespace]:
        for number, text in enumerate(self._texts):
            yield SimpleNamespace(document=Document(str(number), text))


@pytest.fixture(scope="session")
def outcomes(deduplicate: Callable[..., PipelineConfig]) -> Callable[..., list[str]]:
    """As `deduplicate`, but gives for each text the reason to drop it, or `kept: TEXT`."""

    def run(sections: dict[str, Any], units: Sequence[Sequence[str]], **options: Any) -> list[str]:
        config = deduplicate(sections, units, **options)
        found = []
        for unit, texts in enumerate(units):
            verdicts = UnitVerdicts(config, unit)
            for kept in _Reader(texts):
                judged = verdicts.judge(kept.document)
                found.append(judged if isinstance(judged, str) else f"kept: {judged.text}")
            verdicts.end()
        return found

    return run


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """`evaluation(text, …)`: the section that looks for what the texts, each a record, have."""

    def make(*texts: str, ngram_words: int = 13) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("evaluation")
        for index, text in enumerate(texts):
            (folder / f"{index}.txt").write_text(text)
        source = {"name": "exam", "type": "text", "files": [f"{folder}/*.txt"]}
        return {"evaluations": [source], "ngram_words": ngram_words}

    return make
