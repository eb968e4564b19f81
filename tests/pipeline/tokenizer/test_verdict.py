from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.tokenizer.verdict import Verdict, cache_directory


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_known_once_it_is_remembered() -> None:
    assert not Verdict(b"tokenizer", "splintr 1").is_known()
    Verdict(b"tokenizer", "splintr 1").remember()
    assert Verdict(b"tokenizer", "splintr 1").is_known()


@pytest.mark.parametrize("other", [(b"tokenizer", "splintr 2"), (b"tokenizersplintr 1",), (b"tokenizers", "plintr 1")])
def test_it_speaks_for_nothing_else(other: tuple[bytes | str, ...]) -> None:
    Verdict(b"tokenizer", "splintr 1").remember()
    assert not Verdict(*other).is_known()


def test_a_cache_that_cannot_be_written_is_no_cache(empty_cache: Path) -> None:
    empty_cache.write_text("a file where the folder should be")
    Verdict(b"tokenizer").remember()
    assert not Verdict(b"tokenizer").is_known()


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", no_home)
    Verdict(b"tokenizer").remember()
    assert not Verdict(b"tokenizer").is_known()


def test_it_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "smollm2" / "encoding"
