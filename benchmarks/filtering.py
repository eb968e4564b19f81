"""Gopher's quality and repetition filters, C4's and FineWeb's: ours beside datatrove's, speed and decisions.

    python benchmarks/filtering.py --peer-python PATH-OF-A-PYTHON-THAT-HAS-DATATROVE

Both get the same documents (`filter_corpus.py`, or JSON lines with a `text`), in processes of their own, in turn, so
that every text is new to every cache. Twice: `chain`, as a pipeline asks, in FineWeb's order and up to the first that
objects; and `each`, all four about every document. Times are CPU seconds, from the second document on: what is loaded
with the first is left out. Thresholds are the papers' on both sides, but for C4's, which are datatrove's on both.

Where decisions differ, the two cut text differently and the document lies at a threshold:
- too few alphabetic words (`below_alpha_threshold`), too few words: datatrove counts spaCy's words, which keep together
  what is one name or abbreviation to them (`C++`, `i.e.`, `a.` of a list) and part some code and markup that ours keep
  together (`--zone=ZONE`, `f(x)`), so that the share of words that are marks differs by a few in a hundred;
- n-grams: the same; a repeated passage has a word more or less;
- a bracket in a line with one of C4's phrases drops the page for datatrove and the line for ours, but for "javascript";
- too few sentences: an abbreviation ends a sentence to one of them, on a page of four or five sentences.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILTERS = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
ASKINGS = ("chain", "each")

# the reasons of the filters that objected, in their order; and the text at the end
Verdict = tuple[dict[str, str], str]
Ask = Callable[[str], Verdict]


class Clock:
    """CPU seconds by filter."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(FILTERS, 0.0)

    def add(self, name: str, started: float) -> None:
        self.seconds[name] += time.process_time() - started


def ours(clock: Clock, *, stops: bool) -> Ask:
    from pydantic import TypeAdapter

    from pipeline.filter_config import FilterConfig
    from pipeline.filters.chain import RULES
    from pipeline.filters.view import DocumentView

    as_the_peer = {"c4": {"min_words_per_line": 3, "min_sentences": 5, "terminal_marks": (".", "!", "?", '"', "'")}}
    configs: list[Any] = [
        TypeAdapter(FilterConfig).validate_python({"type": name} | as_the_peer.get(name, {})) for name in FILTERS
    ]

    def ask(text: str) -> Verdict:
        view = DocumentView(text)
        reasons = {}
        for config in configs:
            started = time.process_time()
            reason = RULES[config.type](view, config)
            clock.add(config.type, started)
            if reason is not None:
                reasons[config.type] = reason
                if stops:
                    break
            if not stops and view.text is not text:
                view = DocumentView(text)
        return reasons, view.text

    return ask


def datatrove(clock: Clock, *, stops: bool) -> Ask:
    from datatrove.data import Document
    from datatrove.pipeline import filters

    peers = {
        "gopher_repetition": filters.GopherRepetitionFilter(),
        "gopher_quality": filters.GopherQualityFilter(),
        "c4": filters.C4QualityFilter(),
        "fineweb": filters.FineWebQualityFilter(char_duplicates_ratio=0.1),
    }

    def ask(text: str) -> Verdict:
        document = Document(text=text, id="")
        reasons = {}
        for name in FILTERS:
            started = time.process_time()
            result = peers[name].filter(document)
            clock.add(name, started)
            if result is not True:
                reasons[name] = result[1] if isinstance(result, tuple) else name
                if stops:
                    break
            if not stops:
                document.text = text
        return reasons, document.text

    return ask


CONTENDERS = {"ours": ours, "datatrove": datatrove}


def rows_of(file: Path) -> list[Any]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def run_one(name: str, asking: str, documents: Path, output: Path) -> None:
    """In a process of its own: a line of seconds by filter, then a line for each document's verdict."""
    clock = Clock()
    ask = CONTENDERS[name](clock, stops=asking == "chain")
    texts = [row["text"] for row in rows_of(documents)]
    ask("The first document, to be loaded with. " * 20)
    clock.seconds = dict.fromkeys(FILTERS, 0.0)
    verdicts = [ask(text) for text in texts]
    with output.open("w", encoding="utf-8") as file:
        for item in (clock.seconds, *verdicts):
            file.write(json.dumps(item) + "\n")


def measure(name: str, asking: str, documents: Path, python: str) -> tuple[dict[str, float], list[Verdict]]:
    root = str(Path(__file__).resolve().parents[1])
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as output:
        command = [python, __file__, "--contender", name, "--asking", asking, "--output", output.name]
        done = subprocess.run(
            [*command, "--texts", str(documents)],
            env=os.environ | {"PYTHONPATH": root},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        seconds, *verdicts = rows_of(Path(output.name))
    return seconds, [(reasons, text) for reasons, text in verdicts]


def print_speed(asking: str, seconds: dict[str, list[dict[str, float]]], size_bytes: int) -> None:
    print(
        f"\n{asking}: CPU seconds, middle of {len(seconds['ours'])} rounds (least to most), {size_bytes / 1e6:.1f} MB"
    )
    print(" " * 20 + "".join(f"{name:>24}{'MB/s':>8}" for name in seconds) + "ratio".rjust(8) * (len(seconds) > 1))
    for name in (*FILTERS, "all"):
        row = f"{name:<20}"
        medians = []
        for runs in seconds.values():
            values = [sum(run.values()) if name == "all" else run[name] for run in runs]
            medians.append(max(statistics.median(values), 1e-9))
            row += f"{f'{medians[-1]:.2f} ({min(values):.2f} to {max(values):.2f})':>24}"
            row += f"{size_bytes / 1e6 / medians[-1]:>8.2f}"
        print(row + f"{medians[-1] / medians[0]:>7.1f}x" * (len(medians) > 1))


def print_decisions(asking: str, rows: list[dict[str, str]], verdicts: dict[str, list[Verdict]]) -> None:
    pairs = list(zip(rows, verdicts["ours"], verdicts["datatrove"], strict=True))
    for name in ("all together",) if asking == "chain" else FILTERS:
        kinds: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        kept = 0
        for index, (row, *both) in enumerate(pairs):
            mine, theirs = (_reason(reasons, name) for reasons, _ in both)
            kept += theirs == "kept"
            if (mine == "kept") != (theirs == "kept"):
                kinds[mine, theirs].append(f"{index} {row.get('kind', '')}".strip())
        equal = 1 - sum(map(len, kinds.values())) / len(pairs)
        print(f"{name}: {equal:.2%} of {len(pairs):,} decisions equal; datatrove keeps {kept:,}")
        for (mine, theirs), documents in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
            print(f"  {len(documents):>4}  ours {mine}, datatrove {theirs}: {', '.join(documents)}")
    if asking == "chain":
        texts = [(mine, theirs) for _, (reasons, mine), (more, theirs) in pairs if not reasons and not more]
        print(f"of {len(texts):,} documents kept by both, {sum(a == b for a, b in texts):,} leave with equal texts")


def _reason(reasons: dict[str, str], name: str) -> str:
    return reasons.get(name, "kept") if name in FILTERS else next(iter(reasons.values()), "kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=3000, help="how many (default: 3000)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of documents (default: 1)")
    parser.add_argument("--texts", type=Path, help="JSON lines with a `text` instead")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has datatrove[processing], spacy")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--asking", choices=ASKINGS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.contender:
        run_one(settings.contender, settings.asking, settings.texts, settings.output)
        return
    pythons = {"ours": sys.executable, "datatrove": settings.peer_python}
    if subprocess.run([settings.peer_python, "-c", "import datatrove, spacy"], capture_output=True).returncode:
        print(f"left out: datatrove ({settings.peer_python} has none; see --peer-python)")
        del pythons["datatrove"]
    with tempfile.TemporaryDirectory() as temporary:
        texts = settings.texts or Path(temporary) / "texts.jsonl"
        if settings.texts is None:
            from filter_corpus import documents

            found = documents(settings.documents, seed=settings.seed)
            texts.write_text("".join(json.dumps({"kind": kind, "text": text}) + "\n" for kind, text in found))
        rows = rows_of(texts)
        size_bytes = sum(len(row["text"].encode()) for row in rows)
        print(f"{len(rows):,} documents: {dict(collections.Counter(row.get('kind', 'text') for row in rows))}")
        for asking in ASKINGS:
            seconds: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
            verdicts: dict[str, list[Verdict]] = {}
            for _ in range(settings.rounds):
                for name in pythons:
                    taken, verdicts[name] = measure(name, asking, texts, pythons[name])
                    seconds[name].append(taken)
            print_speed(asking, seconds, size_bytes)
            if len(verdicts) == 2:
                print_decisions(asking, rows, verdicts)


if __name__ == "__main__":
    main()
