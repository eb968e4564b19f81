"""Who may import whom, by reading every import statement: those inside functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("configs", "pipeline", "model", "launch", "checkpoint")
CONTRACTS = (
    "pipeline.shards.format",
    "checkpoint.manifest",
    "checkpoint.file_records",
    "checkpoint.digests",
    "checkpoint.run_record",
    "checkpoint.events",
    "checkpoint.extents",
    "checkpoint.rank_file",
    "checkpoint.zero3_layout",
    "checkpoint.zero3_state",
    "checkpoint.reading",
)
MAY_IMPORT = {
    "configs": (),
    "model": (),
    "pipeline": ("checkpoint.run_record", "checkpoint.events"),
    "checkpoint": ("model",),
    "launch": ("model", *CONTRACTS),
}
CONTRACT_LIBRARIES = ("numpy", "pyarrow", "pydantic", "xxhash")
FILES = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
STANDARD_LIBRARY = __import__("sys").stdlib_module_names


def imported_modules(file: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively; name the room"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def is_or_is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_through_the_doors(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    allowed = (room, *MAY_IMPORT[room])
    if file.name == "cli.py" or file == ROOT / "launch" / "train.py":
        allowed += ("configs",)
    wrong = [
        name
        for name in imported_modules(file)
        if name.split(".")[0] in ROOMS and not any(is_or_is_in(name, door) for door in allowed)
    ]
    assert wrong == []


@pytest.mark.parametrize("contract", CONTRACTS)
def test_contracts_import_only_light_libraries_and_each_other(contract: str) -> None:
    file = ROOT / (contract.replace(".", "/") + ".py")
    heavy = [
        name
        for name in imported_modules(file)
        if name.split(".")[0] not in (*STANDARD_LIBRARY, *CONTRACT_LIBRARIES)
        and not any(is_or_is_in(name, other) for other in CONTRACTS)
    ]
    assert heavy == []


@pytest.mark.parametrize(
    "package",
    [file for file in FILES if file.name == "__init__.py"],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_packages_hold_a_docstring_and_nothing_else(package: Path) -> None:
    body = ast.parse(package.read_text()).body
    assert len(body) == 1
    assert ast.get_docstring(ast.parse(package.read_text()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_have_nouns_for_names(file: Path) -> None:
    assert file.stem not in {"utils", "helpers", "common", "misc", "base"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_stay_under_300_lines(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 300
