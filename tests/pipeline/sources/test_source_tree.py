from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.document import Document, SourceError
from pipeline.source_config import SourceTreeConfig
from pipeline.sources import source_tree


def config_of(root: Path | str, **fields: Any) -> SourceTreeConfig:
    return SourceTreeConfig(type="source_tree", name="code", root=str(root), **fields)


def chosen(path: str, include: str, *exclude: str) -> bool:
    return source_tree.is_chosen(path, include=[include], exclude=exclude)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.py", "a.py", True),
        ("*.py", "deep/a.py", False),
        ("**/*.py", "a.py", True),
        ("**/*.py", "very/deep/a.py", True),
        ("**/*.py", "a.pyc", False),
        ("src/**", "src/a/b", True),
        ("src/**", "source/a", False),
        ("a?.py", "ab.py", True),
        ("a?.py", "a/.py", False),
        ("test_[f-z]*.py", "test_gzip.py", True),
        ("test_[f-z]*.py", "test_abc.py", False),
        ("test_[!f-z]*.py", "test_abc.py", True),
        ("a+b.py", "a+b.py", True),
        ("a+b.py", "aab.py", False),
    ],
)
def test_globs(pattern: str, path: str, expected: bool) -> None:
    assert chosen(path, pattern) is expected


def test_exclude_wins_over_include() -> None:
    assert not chosen("a/site-packages/b.py", "**/*.py", "**/site-packages/**")


def test_files_are_documents_named_by_their_path_in_the_tree(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "b.py").write_text("b = 1\n")
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "a.txt").write_text("no")
    config = config_of(tmp_path)
    pieces = source_tree.find_pieces(config, unit_size_bytes=1)
    assert [record for piece in pieces for record in source_tree.read_piece(config, piece)] == [
        Document("a.py", "a = 1\n"),
        Document("pkg/b.py", "b = 1\n"),
    ]


def test_a_folder_is_left_out_only_if_all_of_it_is_excluded(tmp_path: Path) -> None:
    for name in ("a/skip/b.py", "a/skip/deep/c.py", "a/keep/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(*exclude: str) -> set[str]:
        pieces = source_tree.find_pieces(config_of(tmp_path, exclude=exclude), unit_size_bytes=1)
        return {Path(piece.path).relative_to(tmp_path).as_posix() for piece in pieces}

    assert found("**/skip/**") == {"a/keep/d.py"}
    assert found("**/skip/*") == {"a/keep/d.py", "a/skip/deep/c.py"}


def test_a_file_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/abc\xe9.py")).write_text("x = 1\n")
    config = config_of(tmp_path)
    (piece,) = source_tree.find_pieces(config, unit_size_bytes=1)
    assert list(source_tree.read_piece(config, piece)) == [Document("abc\\xe9.py", "x = 1\n")]


def test_a_link_to_its_own_parent_does_not_lead_round_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(list(source_tree.find_pieces(config_of(tmp_path), unit_size_bytes=1))) == 1


def test_python_stdlib_is_the_running_interpreters_library() -> None:
    config = config_of("python:stdlib", include=("json/*.py",))
    (first, *_) = source_tree.find_pieces(config, unit_size_bytes=1)
    assert first.path == f"{sysconfig.get_paths()['stdlib']}/json/__init__.py"
    (document,) = source_tree.read_piece(config, first)
    assert document == Document("json/__init__.py", Path(json.__file__).read_text(encoding="utf-8"))


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source 'code': root .*/none is not a folder"):
        list(source_tree.find_pieces(config_of(tmp_path / "none"), unit_size_bytes=1))


def test_no_file_left_says_what_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no file below .* is included; include is \*\.c, exclude is b\*"):
        list(source_tree.find_pieces(config_of(tmp_path, include=("*.c",), exclude=("b*",)), unit_size_bytes=1))


@pytest.mark.parametrize(("fields", "name"), [({}, "tree"), ({"repository": "team/project"}, "team/project")])
def test_special_tokens_name_the_repository_and_the_file(tmp_path: Path, fields: dict[str, str], name: str) -> None:
    file = tmp_path / "tree" / "a" / "b.py"
    file.parent.mkdir(parents=True)
    file.write_text("x = 1\n")
    config = config_of(tmp_path / "tree", special_tokens=True, **fields)
    (piece,) = source_tree.find_pieces(config, unit_size_bytes=1)
    header = (("<repo_name>", name), ("<file_sep>", "a/b.py\n"))
    assert list(source_tree.read_piece(config, piece)) == [Document("a/b.py", "x = 1\n", header=header)]


@pytest.mark.parametrize(
    ("pattern", "reason"), [("[z-a].py", "bad character range z-a"), ("[!].py", "unterminated character set")]
)
def test_a_glob_without_a_meaning_is_named(pattern: str, reason: str) -> None:
    with pytest.raises(SourceError) as raised:
        chosen("a.py", "*.py", "*.c", pattern)
    assert str(raised.value) == (
        f"glob {pattern!r} cannot be used: {reason}; wanted characters in [ ], ranges upwards, as in [a-z]"
    )


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, refuse_folder: Callable[[Path], None]) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "a.py").touch()
    refuse_folder(tmp_path / "secret")
    with pytest.raises(
        SourceError, match=r"^source 'code': .*/secret cannot be listed: Permission denied; make it readable, or leave"
    ):
        list(source_tree.find_pieces(config_of(tmp_path), unit_size_bytes=1))
    config = config_of(tmp_path, exclude=("secret/**",))
    assert len(list(source_tree.find_pieces(config, unit_size_bytes=1))) == 1
