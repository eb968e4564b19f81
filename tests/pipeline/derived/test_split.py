from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.derived.merge import merge
from pipeline.derived.split import Cuts, split
from pipeline.document import PipelineError
from pipeline.shards.format import read_manifest, write_manifest
from pipeline.shards.verify import verify_dataset

Document = tuple[str, tuple[int, ...]]
Read = Callable[..., list[Document]]


def cut_by_tokens(documents: list[Document], sizes: list[int]) -> list[list[Document]] | None:
    """The reference: each part ends with the document that reaches its tokens, the last has the rest."""
    parts: list[list[Document]] = []
    left = list(documents)
    for size in sizes:
        part: list[Document] = []
        while sum(len(ids) for _, ids in part) < size:
            if not left:
                return None
            part.append(left.pop(0))
        parts.append(part)
    return [*parts, left] if left else None


@settings(max_examples=12, deadline=None)
@given(
    shards=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
)
def test_parts_by_tokens_are_those_of_the_reference(
    shards: list[int],
    sizes: list[int],
    make_dataset: Callable[..., Path],
    make_documents: Callable[..., list[Document]],
    read_documents: Read,
) -> None:
    documents = [make_documents(size, seed=seed) for seed, size in enumerate(shards)]
    expected = cut_by_tokens([document for shard in documents for document in shard], sizes)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "dataset", documents)
        outputs = [Path(folder) / str(part) for part in range(len(sizes) + 1)]
        if expected is None:
            with pytest.raises(PipelineError, match="give fewer"):
                split(dataset, outputs, cuts=Cuts("tokens", tuple(sizes)))
            assert not any(output.exists() for output in outputs)
            return
        split(dataset, outputs, cuts=Cuts("tokens", tuple(sizes)))
        assert [read_documents(output) for output in outputs] == expected


@settings(max_examples=12, deadline=None)
@given(
    shards=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    held=st.lists(st.integers(1, 5), max_size=2),
    draw=st.data(),
)
def test_a_merge_of_the_parts_is_the_dataset(
    shards: list[int],
    held: list[int],
    draw: Any,
    make_dataset: Callable[..., Path],
    make_documents: Callable[..., list[Document]],
    read_documents: Read,
) -> None:
    total = sum(shards)
    bounds = sorted(draw.draw(st.sets(st.integers(1, total - 1), min_size=1, max_size=3)))
    sizes = [stop - start for start, stop in zip([0, *bounds], bounds, strict=False)]
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(
            Path(folder) / "dataset",
            [make_documents(size, seed=seed) for seed, size in enumerate(shards)],
            [make_documents(size, seed=90 + seed) for seed, size in enumerate(held)],
        )
        outputs = [Path(folder) / str(part) for part in range(len(bounds) + 1)]
        parts = split(dataset, outputs, cuts=Cuts("documents", tuple(sizes)))
        assert [part.splits["train"].documents for part in parts] == [*sizes, total - bounds[-1]]
        assert not any(verify_dataset(output, threads=1) for output in outputs)
        merge(Path(folder) / "again", outputs)
        for name in ("train", "validation"):
            assert read_documents(Path(folder) / "again", name) == read_documents(dataset, name)


def test_fractions_are_of_the_documents_of_both_splits(dataset: Path, tmp_path: Path, read_documents: Read) -> None:
    outputs = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    parts = split(dataset, outputs, cuts=Cuts("fractions", (0.5, 0.25)))
    assert [part.splits["train"].documents for part in parts] == [20, 10, 10]
    assert [part.splits["validation"].documents for part in parts] == [6, 3, 3]
    assert read_documents(outputs[1]) == read_documents(dataset)[20:30]


def test_only_a_shard_that_a_cut_goes_through_is_written_anew(dataset: Path, tmp_path: Path) -> None:
    split(dataset, [tmp_path / "a", tmp_path / "b"], cuts=Cuts("documents", (15,)))
    assert (tmp_path / "a" / "data-00000-000.arrow").samefile(dataset / "data-00000-000.arrow")
    assert not (tmp_path / "a" / "data-00001-000.arrow").samefile(dataset / "data-00001-000.arrow")
    assert (tmp_path / "b" / "data-00002-000.arrow").samefile(dataset / "data-00003-000.arrow")


def test_what_a_part_says_of_itself(dataset: Path, tmp_path: Path) -> None:
    whole = read_manifest(dataset)
    first, _ = split(dataset, [tmp_path / "a", tmp_path / "b"], cuts=Cuts("documents", (15,)))
    # by hand: shards of 10 documents are web, code, web, code; of 12 held ones 4.5, to the even 4, are in the first
    assert {name: source.documents for name, source in first.sources.items()} == {"web": 10 + 4, "code": 5}
    assert first.documents_in == first.documents == 19
    assert first.text_bytes_kept == 4 * first.tokens
    assert first.origin is not None
    assert (first.origin.verb, first.origin.options) == ("split", {"documents": "15", "part": 0})
    assert first.origin.datasets == (whole.digest(),)


def test_the_bytes_of_a_part_are_those_of_its_sources(dataset: Path, tmp_path: Path) -> None:
    whole = read_manifest(dataset)
    web = whole.sources["web"].model_copy(update={"text_bytes": 3 * whole.sources["web"].text_bytes})
    write_manifest(dataset, whole.model_copy(update={"sources": whole.sources | {"web": web}}))
    for part in split(dataset, [tmp_path / "a", tmp_path / "b"], cuts=Cuts("documents", (10,))):
        assert part.text_bytes_kept == sum(source.text_bytes for source in part.sources.values())
        assert part.text_bytes_kept > 4 * part.tokens


def test_the_same_command_goes_on_after_the_parts_that_are_there(dataset: Path, tmp_path: Path) -> None:
    import shutil

    outputs = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    cuts = Cuts("documents", (15, 12))
    made = split(dataset, outputs, cuts=cuts)
    shutil.rmtree(outputs[1])
    changed = (outputs[0] / "manifest.json").stat().st_mtime_ns
    assert split(dataset, outputs, cuts=cuts) == made
    assert (outputs[0] / "manifest.json").stat().st_mtime_ns == changed
    assert verify_dataset(outputs[1], threads=1) == []


def test_a_part_of_other_cuts_is_in_the_way(dataset: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "a", tmp_path / "b"]
    split(dataset, outputs, cuts=Cuts("documents", (15,)))
    with pytest.raises(PipelineError, match=r"a is there already; remove it, or choose another output"):
        split(dataset, outputs, cuts=Cuts("documents", (16,)))


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        (
            Cuts("fractions", (0.5, 0.5)),
            r"--fractions gives 2 sizes for 2 outputs; give one for each output but the",
        ),
        (Cuts("fractions", (0.999,)), r"b would hold no training documents: .* has 40 of them and [\d,]+ tokens; give"),
        (Cuts("fractions", (0.001,)), r"a would hold no training documents: "),
        (Cuts("documents", (40,)), r"b would hold no training documents: .*; give fewer documents"),
        (Cuts("documents", (50,)), r"b would hold no training documents: "),
        (Cuts("tokens", (1000,)), r"dataset has [\d,]+ training tokens, fewer than --tokens asks for; give fewer"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(dataset: Path, tmp_path: Path, cuts: Cuts, message: str) -> None:
    outputs = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(PipelineError, match=message):
        split(dataset, outputs, cuts=cuts)
    assert not any(output.exists() for output in outputs)


def test_one_output_given_twice_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"the same output is given twice"):
        split(dataset, [tmp_path / "a", tmp_path / "a"], cuts=Cuts("documents", (5,)))
