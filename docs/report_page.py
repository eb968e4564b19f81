"""Takes docs/report.png, the screenshot in docs/data.md: the report of a small mixed corpus that is on every machine.

apt-get install chromium
python docs/report_page.py [REPORT_HTML, by default that of the corpus made here] [--dark]

The corpus: Python's standard library (code), its manual and docstrings (prose), and what the installed packages say of
themselves. Some of it is dropped, as in any corpus.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import pydoc_data.topics
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.run import run

WIDTH, HEIGHT = 1180, 1760
CHROMIUM_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--force-device-scale-factor=1",
]  # fmt: skip


def docstrings() -> Iterator[tuple[str, str]]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield f"{path.stem}:{getattr(node, 'lineno', 1)}", text


def package_descriptions() -> Iterator[dict[str, object]]:
    for distribution in sorted(importlib.metadata.distributions(), key=lambda one: str(one.metadata["Name"])):
        metadata: Any = distribution.metadata
        # some say nothing: a record without text
        yield {"name": metadata["Name"], "text": metadata.get_payload() or metadata["Description"]}


def write_jsonl(path: Path, rows: Iterable[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_report(folder: Path) -> Path:
    """Run the pipeline over the corpus; returns the page."""
    manual = [*pydoc_data.topics.topics.items(), *docstrings()]
    write_jsonl(folder / "manual.jsonl", ({"name": name, "text": text} for name, text in manual))
    write_jsonl(folder / "packages.jsonl", package_descriptions())
    code = {"name": "standard-library", "type": "source_tree", "root": "python:stdlib", "include": ["**/*.py"]}
    config = PipelineConfig.model_validate(
        {
            "name": "python-mixed",
            "output_dir": folder / "dataset",
            "sources": [
                code | {"exclude": ["**/site-packages/**", "**/dist-packages/**"]},
                {"name": "manual", "type": "jsonl", "files": [str(folder / "manual.jsonl")], "id_field": "name"},
                {"name": "packages", "type": "jsonl", "files": [str(folder / "packages.jsonl")], "id_field": "name"},
            ],
            "tokenizer": {"train": {"vocab_size": 8192, "sample_bytes": 8 << 20}},
            "filters": [{"type": "length", "min_characters": 200, "max_characters": 100_000}],
            "max_bad_record_fraction": 0.2,
            "unit_size_bytes": 4 << 20,
            "validation_fraction": 0.01,
        }
    )
    run(config)
    return config.output_dir / "report.html"


def take(page: Path, picture: Path, *, flags: list[str]) -> None:
    chromium = shutil.which("chromium") or sys.exit("chromium is missing; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                chromium, *CHROMIUM_FLAGS, *flags, f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}",
                f"--screenshot={picture}", page.resolve().as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("report.png"))
    arguments = parser.parse_args()
    flags = ["--blink-settings=preferredColorScheme=0"] if arguments.dark else []
    with tempfile.TemporaryDirectory() as folder:
        take(arguments.page or make_report(Path(folder)), arguments.output, flags=flags)


if __name__ == "__main__":
    main()
