"""Who may import whom, by reading every import statement: those inside functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("configs", "pipeline", "model", "launch", "checkpoint")
CONTRACTS = ("pipeline.shards.format", "checkpoint.manifest", "checkpoint.events", "checkpoint.zero_layout")
MAY_IMPORT = {
    "configs": (),
    "model": (),
    "pipeline": ("checkpoint.events",),
    "checkpoint": ("model",),
    "launch": ("model", *CONTRACTS),
}
# xxhash: the trainer digests a save while its bytes pass
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


def module_file(name: str) -> Path | None:
    """The file of a module of ours, or of the one that defines the name."""
    for module in (name, name.rpartition(".")[0]):
        file = ROOT / (module.replace(".", "/") + ".py")
        if file.is_file():
            return file
    return None


def files_behind(contract: str) -> set[Path]:
    """The contract's file and all of ours that are loaded with it."""
    found: set[Path] = set()
    waiting = [module_file(contract)]
    while waiting:
        file = waiting.pop()
        if file is not None and file not in found:
            found.add(file)
            waiting += [module_file(name) for name in imported_modules(file)]
    return found


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
def test_contracts_load_only_light_libraries_and_files_of_their_room(contract: str) -> None:
    room = contract.partition(".")[0]
    heavy = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in sorted(files_behind(contract))
        for name in imported_modules(file)
        if name.split(".")[0] not in (*STANDARD_LIBRARY, *CONTRACT_LIBRARIES, room)
    ]
    assert heavy == []


@pytest.mark.parametrize("contract", CONTRACTS)
def test_other_rooms_import_only_what_a_contract_offers(contract: str) -> None:
    module = importlib.import_module(contract)
    offered = getattr(module, "__all__", vars(module))
    others = [file for file in FILES if file.relative_to(ROOT).parts[0] != contract.partition(".")[0]]
    taken = {name for file in others for name in imported_modules(file) if name.startswith(contract + ".")}
    assert taken
    assert {name.rpartition(".")[2] for name in taken} - set(offered) == set()


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


def test_only_what_ships_knows_mlflow() -> None:
    """Above all no trainer: a server that is away must not be able to stop it."""
    knowing = {
        str(file.relative_to(ROOT))
        for file in FILES
        if any(name.split(".")[0] == "mlflow" for name in imported_modules(file))
    }
    assert knowing == {f"checkpoint/{name}.py" for name in ("mlflow_connection", "mlflow_run", "registry", "tracking")}
