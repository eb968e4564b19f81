from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.document import Document, SourceError
from pipeline.source_config import GitConfig
from pipeline.sources import git


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    files = {
        "a.py": "a = 1\n",
        "src/lib.rs": "fn a() {}\n",
        "src/deep/b.pyi": "b: int\n",
        "naïve.md": "# N\n",
        "build/out.py": "no\n",
        "src/deep/secret.py": "no\n",
        "src/deep/.gitignore": "secret.py\n",
        ".gitignore": "build/\n",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "link.py").symlink_to("a.py")
    subprocess.run(["git", "init", "-q", root], check=True)
    subprocess.run(["git", "-C", root, "add", "a.py", "src/lib.rs"], check=True)
    return root


def read(root: Path, **fields: Any) -> dict[str, str]:
    config = GitConfig(type="git", name="code", root=str(root), **fields)
    records = [
        record for piece in git.find_pieces(config, unit_size_bytes=1) for record in git.read_piece(config, piece)
    ]
    return {record.document_id: record.text for record in records if isinstance(record, Document)}


def test_files_that_git_ignores_and_links_are_left_out(checkout: Path) -> None:
    assert list(read(checkout)) == [
        ".gitignore",
        "a.py",
        "naïve.md",
        "src/deep/.gitignore",
        "src/deep/b.pyi",
        "src/lib.rs",
    ]
    assert read(checkout)["src/lib.rs"] == "fn a() {}\n"


def test_files_are_chosen_by_language_and_by_globs(checkout: Path) -> None:
    assert list(read(checkout, languages=("python", "rust"))) == ["a.py", "src/deep/b.pyi", "src/lib.rs"]
    assert list(read(checkout, languages=("python",), exclude=("src/**",))) == ["a.py"]
    assert list(read(checkout, include=("**/*.rs",))) == ["src/lib.rs"]


def test_a_tracked_file_that_is_not_there_is_no_document(checkout: Path) -> None:
    (checkout / "a.py").unlink()
    assert "a.py" not in read(checkout)


def test_a_part_of_a_checkout_may_be_the_root(checkout: Path) -> None:
    assert list(read(checkout / "src", languages=("rust",))) == ["lib.rs"]


def test_a_folder_that_is_no_checkout_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(
        SourceError, match=r"^source 'code': root .* cannot be listed: [^\n]*not a git repository[^\n]*$"
    ):
        read(tmp_path)


def test_an_unknown_language_names_the_known(checkout: Path) -> None:
    with pytest.raises(SourceError, match=r"language 'Python' is not known; known are .*python"):
        read(checkout, languages=("Python",))


def test_no_file_left_is_an_error(checkout: Path) -> None:
    with pytest.raises(SourceError, match=r"no file that git lists below .* is chosen"):
        read(checkout, languages=("cuda",))


def test_a_machine_without_git_is_told(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SourceError, match=r"there is no git on this machine; install it"):
        read(checkout)


def test_special_tokens_name_the_checkout_and_the_file(checkout: Path) -> None:
    config = GitConfig(type="git", name="code", root=str(checkout), include=("a.py",), special_tokens=True)
    (piece,) = git.find_pieces(config, unit_size_bytes=1)
    header = (("<repo_name>", "checkout"), ("<file_sep>", "a.py\n"))
    assert list(git.read_piece(config, piece)) == [Document("a.py", "a = 1\n", header=header)]
