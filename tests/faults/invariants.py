"""What must hold of a run folder whatever was killed, and when. Each function returns what is wrong, a line each.

Written to be read, and apart from the code that it judges: it lists folders, parses the log and asks the database by
itself, and uses of `checkpoint` only what hashes a checkpoint (`verify_checkpoint`). A kill leaves the page cache, so
that fsync is not judged here; what a reader can see is.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from checkpoint.manifest import verify_checkpoint

Row = tuple[str, int, int, float]  # key, step, timestamp in ms, value


def check_checkpoints(run: Path, *, known_newest: int) -> list[str]:
    """All that are visible are whole, the newest is not older than one seen before, and `latest` names one."""
    steps = visible_steps(run / "checkpoints")
    wrong = []
    for folder in steps.values():
        if not (folder / "manifest.json").is_file():
            wrong.append(f"{folder.name} is visible and has no manifest")
        wrong += [f"{folder.name} does not verify: {problem}" for problem in verify_checkpoint(folder)]
    if max(steps, default=0) < known_newest:
        wrong.append(f"step {known_newest} was saved, the newest now is {max(steps, default=0)}")
    latest = run / "checkpoints" / "latest"
    if latest.exists() and not (run / "checkpoints" / latest.read_text().strip() / "manifest.json").is_file():
        wrong.append(f"latest names {latest.read_text().strip()}, which is not there")
    return wrong


def check_exports(run: Path) -> list[str]:
    """What is visible has passed its proof, and holds exactly the files that were proven."""
    wrong = []
    for folder in visible_steps(run / "exports").values():
        try:
            proof = json.loads((folder / "proof.json").read_text())
        except (OSError, ValueError) as error:
            wrong.append(f"export {folder.name} is visible without a proof: {error}")
            continue
        if proof["verdict"] != "passed":
            wrong.append(f"export {folder.name} is visible and failed its proof: {proof['reasons']}")
        # the card is written anew when the export is measured
        names = {path.name for path in folder.iterdir()} - {"proof.json", "README.md"}
        if names != set(proof["files"]) or "model.safetensors" not in names:
            wrong.append(f"export {folder.name} has {sorted(names)}, proven were {sorted(proof['files'])}")
            continue
        for name, digest in proof["files"].items():
            if "sha256:" + hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                wrong.append(f"export {folder.name}: {name} is not what was proven")
    return wrong


def check_mlflow(run: Path, database: Path, *, is_all_shipped: bool) -> list[str]:
    """One MLflow run; no row twice, none that the log does not have; with `is_all_shipped` every row of the log."""
    run_key = json.loads((run / "run.json").read_text())["run_key"]
    ours = (
        "join tags t on t.run_uuid = r.run_uuid where t.key = 'smollm2.run_key' and t.value = ? "
        "and r.lifecycle_stage = 'active'"
    )
    with sqlite3.connect(database, timeout=60) as store:
        runs = store.execute(f"select r.run_uuid from runs r {ours}", (run_key,)).fetchall()
        rows: list[Row] = store.execute(
            f"select m.key, m.step, m.timestamp, m.value from metrics m join runs r on r.run_uuid = m.run_uuid {ours}",
            (run_key,),
        ).fetchall()
    wrong = [f"MLflow has {len(runs)} runs of this key"] if len(runs) > 1 else []
    times = Counter((key, step) for key, step, _, _ in rows)
    wrong += [f"MLflow has {key} of step {step} {count} times" for (key, step), count in times.items() if count > 1]
    told, sent = set(first_tellings(run)), set(rows)
    wrong += [f"MLflow has {row}, the log does not" for row in sorted(sent - told)[:3]]
    if is_all_shipped:
        wrong += [f"the log has {row}, MLflow does not" for row in sorted(told - sent)[:3]]
    return wrong


def check_kept(run: Path, promised: Collection[int]) -> list[str]:
    """What retention promised to keep is there."""
    steps = visible_steps(run / "checkpoints")
    return [f"step {step} was promised and is gone" for step in sorted(promised) if step not in steps]


def check_leftovers(run: Path) -> list[str]:
    """After the sweeper, with nobody at work: no hidden file or folder but the locks, and what a start takes up.

    A whole checkpoint that only lacked its last rename is kept for the trainer, which saves that step again.
    """
    wrong = []
    for path in sorted(run.rglob(".*")):
        is_whole = path.name.startswith(".partial-step-") and (path / "manifest.json").is_file()
        inside_whole = any((parent / "manifest.json").is_file() for parent in path.parents)
        if not path.name.endswith(".lock") and not is_whole and not inside_whole:
            wrong.append(f"{path.relative_to(run)} is left over")
    return wrong


def promised_steps(run: Path, *, exports: str, held: Collection[int] = ()) -> set[int]:
    """What no pruning may delete now: pinned, the newest, held by a reader, wanted as an export and not proven."""
    steps = sorted(visible_steps(run / "checkpoints"))
    pinned = {int(path.name.removeprefix("step-")) for path in (run / "pins").glob("step-*")}
    done = max(visible_steps(run / "exports"), default=-1)
    unproven = [step for step in steps if step > done]
    wanted = unproven if exports == "every" else unproven[-1:]
    return ({*pinned, *wanted, *held} & set(steps)) | set(steps[-1:])


def visible_steps(folder: Path) -> dict[int, Path]:
    """What anybody who lists the folder takes for a checkpoint, or for an export, by step."""
    return {int(path.name.removeprefix("step-")): path for path in sorted(folder.glob("step-*"))}


def first_tellings(run: Path) -> Iterator[Row]:
    """Of each metric and step of all logs: what a resumed run repeats, MLflow is to have as it was told first."""
    for log in sorted((run / "events").glob("rank-*.jsonl")):
        seen: set[tuple[str, int]] = set()
        for event in _lines(log):
            if event["kind"] != "metrics":
                continue
            for key, value in event["fields"].items():
                if (key, event["step"]) not in seen:
                    seen.add((key, event["step"]))
                    yield key, event["step"], event["timestamp_ms"], float(value)


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_bytes().split(b"\n")[:-1]:
        try:
            yield json.loads(line)
        except ValueError:
            continue  # torn by a kill, and closed by who came next
