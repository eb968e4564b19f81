from __future__ import annotations

import errno
import glob
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.document import SourceError
from pipeline.sources import storage
from pipeline.sources.local_paths import matching_paths
from pipeline.sources.storage import find_files

PATTERNS = (
    *("**", "**/*", "**/", "*", "*/*", ".*", "**/.*", ".*/**", "**/.b/*", "**/a/**/*", "a*/**", "**/**/b.c"),
    *("**/[!a]*", "**/b.c", "*/b.c", "a/./*", "../top/**/*.c", "a//*.c", "*//b.c", "a/b.c", "none/**", "[", "**.c"),
)


def make_tree(top: Path, *, seed: int) -> None:
    draw = random.Random(seed)
    folders = [top]
    for _ in range(40):
        path = draw.choice(folders) / draw.choice(["a", "ab", "a-b", ".b", "b.c", "a.c", ".c", "d"])
        if path.exists():
            continue
        if draw.random() < 0.5:
            path.mkdir()
            folders.append(path)
        else:
            path.touch()


def files_of_glob(pattern: str) -> list[str]:
    return sorted(path for path in set(glob.glob(pattern, recursive=True)) if os.path.isfile(path))  # noqa: PTH113, PTH207


def listed(pattern: str) -> list[str]:
    return [file.path for file in find_files([pattern], source="corpus")]


@pytest.mark.parametrize("seed", range(20))
def test_files_are_those_of_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    (tmp_path / "top").mkdir()
    make_tree(tmp_path / "top", seed=seed)
    monkeypatch.chdir(tmp_path / "top")
    for pattern in (*PATTERNS, f"{tmp_path}/top/**/*.c", f"{tmp_path}/*/*.c"):
        ours = sorted({path for path in matching_paths(pattern) if os.path.isfile(path)})  # noqa: PTH113
        assert ours == files_of_glob(pattern), pattern


def test_a_linked_folder_is_read_by_the_first_of_its_paths(tmp_path: Path) -> None:
    for name in ("elsewhere/deep/1", "data/a-b/2", "data/z/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in {"data/a": "data/a-b", "data/m": "data/z", "data/far": "elsewhere"}.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    expected = [f"{tmp_path}/data/{name}" for name in ("a-b/2", "far/deep/1", "m/3")]
    assert listed(f"{tmp_path}/data/**/*") == expected
    # what glob lists, each file once by the first of its paths
    first = {os.path.realpath(path): path for path in reversed(files_of_glob(f"{tmp_path}/data/**/*"))}
    assert sorted(first.values()) == expected


@pytest.mark.timeout(60)
def test_links_to_parents_do_not_lead_round_in_circles(tmp_path: Path) -> None:
    deep = tmp_path / "data" / "deep"
    deep.mkdir(parents=True)
    (deep / "a.jsonl").touch()
    for name in ("one", "two"):
        (deep / name).symlink_to(tmp_path / "data")
        (deep / f"{name}-itself").symlink_to(deep / f"{name}-itself")
    assert list(matching_paths(f"{tmp_path}/**/*.jsonl")) == [f"{deep}/a.jsonl"]
    assert listed(f"{tmp_path}/**/*.jsonl") == [f"{deep}/a.jsonl"]


@pytest.mark.parametrize("pattern", ["*.jsonl", "**/*", "**", "b.jsonl"])
@pytest.mark.parametrize("target", ["none", "b.jsonl"])
def test_a_link_that_leads_nowhere_is_named_where_the_pattern_matches_it(
    tmp_path: Path, pattern: str, target: str
) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").symlink_to(target)
    with pytest.raises(SourceError) as raised:
        listed(f"{tmp_path}/{pattern}")
    assert str(raised.value) == (
        f"source 'corpus': {tmp_path}/b.jsonl is a link that leads nowhere, so its documents would be missing; "
        "restore its target, or remove the link"
    )
    assert listed(f"{tmp_path}/a*") == [f"{tmp_path}/a.jsonl"]


def test_a_file_that_vanishes_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").touch()
    monkeypatch.setattr(storage, "matching_paths", lambda pattern: [f"{tmp_path}/a.jsonl", f"{tmp_path}/gone.jsonl"])
    assert listed(f"{tmp_path}/*.jsonl") == [f"{tmp_path}/a.jsonl"]


@pytest.mark.parametrize("pattern", ["**/*.jsonl", "*/*.jsonl", "**"])
def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, refuse_folder: Callable[[Path], None], pattern: str
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "a.jsonl").touch()
    refuse_folder(tmp_path / "secret")
    with pytest.raises(SourceError) as raised:
        listed(f"{tmp_path}/{pattern}")
    assert str(raised.value) == (
        f"source 'corpus': {tmp_path}/secret cannot be listed: Permission denied; "
        "make it readable, or leave it out of the source's globs"
    )


def test_a_folder_that_vanishes_has_no_files(tmp_path: Path, refuse_folder: Callable[..., None]) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "a.jsonl").touch()
    refuse_folder(tmp_path / "gone", number=errno.ENOENT)
    assert listed(f"{tmp_path}/**/*.jsonl") == [f"{tmp_path}/a.jsonl"]
