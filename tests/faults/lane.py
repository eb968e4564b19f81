"""One lane of the campaign: a run under fire, on one core. `test_kills.py` starts one a core.

    python tests/faults/lane.py FOLDER --seed 1/0 --kills 100 --mlflow database --exports newest

Again and again somebody (`victims.py`) is let at the run, often two at a time, and killed with SIGKILL at a drawn
moment; then `invariants.py` looks at what is left. Prints one JSON line a kill, and one with "wrong" for what does not
hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import invariants
import tiny_run
from victims import MAX_WAIT_S, Begun, Child, Victims, warm_up

from checkpoint.journal import journal_file
from checkpoint.manifest import checkpoint_directory, list_steps, read_manifest
from checkpoint.pins import list_pins, pin, unpin
from checkpoint.reading import hold_checkpoint
from checkpoint.sweep import sweep

# how often each is let at the run
WEIGHTS = {
    "trainer, saving behind": 26, "trainer, saving in front": 14, "trainer, two ranks": 10, "export": 20, "ship": 24,
    "prune": 20, "service": 10, "trainer and ship": 6, "trainer and prune": 6, "trainer and export": 6,
}  # fmt: skip


class Lane:
    """The run, who may be let at it, and what they have done so far."""

    def __init__(self, folder: Path, *, seed: str, mlflow_by: str, exports: str, only: str | None = None) -> None:
        self.weights = {kind: weight for kind, weight in WEIGHTS.items() if only in (None, kind)}
        self.folder, self.run, self.exports = folder, folder / "runs" / "run", exports
        self.draw = random.Random(seed)
        self.run.parent.mkdir(parents=True)
        self.victims = Victims(folder, tiny_run.write_tiny_run(folder), mlflow_by=mlflow_by, exports=exports)
        self.duration_s = {"export": 0.4, "ship": 0.3, "prune": 0.05, "service": 1.5}
        self.known_newest = self.number = self.killed = self.buffers_left = 0

    def trial(self) -> None:
        """Let somebody at the run, kill, look."""
        self.number += 1
        (kind,) = self.draw.choices(list(self.weights), list(self.weights.values()))
        if len(list_steps(self.run)) < 3 or (kind.endswith("export") and self.step_to_export() is None):
            kind = "trainer, saving behind"
        began_s = time.monotonic()
        with ExitStack() as stack:
            promised = self.prepare(kind, stack)
            kills = self.perform(kind)
            self.buffers_left += self.victims.clear_shared_memory()
            # what a pruning must keep holds of the next one too
            settled = self.settle(kind)
        wrong = self.check(promised, is_all_shipped=settled, sweeping=self.draw.random() < 0.5)
        for victim, moment in kills:
            self.killed += 1
            _say(kind=victim, moment=moment, number=self.number, seconds=round(time.monotonic() - began_s, 2))
        if wrong:
            _say(wrong=wrong, number=self.number, kind=kind, kills=kills)

    def prepare(self, kind: str, stack: ExitStack) -> set[int]:
        """Pins, readers and damage for a pruning; the steps that must be there afterwards."""
        steps = list_steps(self.run)
        if steps and self.draw.random() < 0.2:
            step = self.draw.choice(steps)
            (unpin if step in list_pins(self.run) else pin)(self.run, step)
        if kind == "ship" and self.draw.random() < 0.15:
            journal_file(self.run).unlink(missing_ok=True)
        if "prune" not in kind:
            return set(list_pins(self.run)) & set(steps)
        held = self.draw.choice(steps)
        stack.enter_context(hold_checkpoint(checkpoint_directory(self.run, held)))
        if kind == "trainer and prune":
            return ({held, *list_pins(self.run)}) & set(steps)
        promised = invariants.promised_steps(self.run, exports=self.exports, held=[held])
        if self.draw.random() < 0.5:
            stack.enter_context(_damaged(checkpoint_directory(self.run, steps[-1])))
            promised |= {steps[-2]}  # now the newest that verifies
        return promised

    def perform(self, kind: str) -> list[tuple[str, str]]:
        """Who was killed, and at what. Trainers are aimed at while they save, the others at any moment of theirs."""
        first, _, second = kind.partition(" and ")
        children: list[tuple[str, list[Child]]] = []
        if first.startswith("trainer"):
            ranks = 2 if first == "trainer, two ranks" else 1
            behind = first != "trainer, saving in front"
            children.append((first, self.victims.trainers(ranks=ranks, asynchronous=behind)))
            self.aim_at_a_save(children[0][1])
        other = second or (first if not children else "")
        server_is_hit = other == "ship" and self.victims.server is not None and self.draw.random() < 0.3
        if other:
            children.append((other, [self.start(other)]))
            children[-1][1][0].wait_until_begun()
            time.sleep(self.draw.uniform(0, 1.1 * self.duration_s[other]))
        if server_is_hit:
            assert self.victims.server is not None
            self.victims.server.kill()
            children[-1][1][0].end()
            self.victims.start_server()
            kills = [("MLflow server", self.moment("ship"))]
        else:
            kills = []
        self.draw.shuffle(children)
        for name, processes in children:
            moment = self.moment(name)
            self.draw.shuffle(processes)
            killed = [process.kill() for process in processes]
            if any(killed):
                kills.append((name, moment))
            elif (code := processes[0].end()) not in (0, 3):
                text = processes[0].log.read_text()[-1500:]
                _say(wrong=[f"{name} ended by itself with {code}: {text}"], number=self.number, kind=kind, kills=[])
        return kills

    def start(self, kind: str) -> Child:
        if kind == "service":
            return self.victims.service()
        if kind == "export":
            step = self.step_to_export()
            assert step is not None  # there was one when this kind was drawn, and a trainer beside it only adds
            return self.victims.job("export", step=step)
        return self.victims.job(kind, batch_rows=self.draw.choice([15, 40, 100, 1000]))

    def aim_at_a_save(self, trainers: Sequence[Child]) -> None:
        """Wait until one has begun, or for a time without aim."""
        if self.draw.random() < 0.15:
            time.sleep(self.draw.uniform(0, 2))
            return
        left, seen = self.draw.choice([0, 1, 1, 3, 6]), set[str]()
        deadline_s = time.monotonic() + MAX_WAIT_S
        while time.monotonic() < deadline_s and not any(child.has_ended() for child in trainers):
            names = {path.name for path in (self.run / "checkpoints").glob(".partial-step-*")}
            left -= len(names - seen)
            seen |= names
            if left < 0:
                time.sleep(self.draw.uniform(0, self.save_s()))
                return
            time.sleep(0.001)

    def save_s(self) -> float:
        """What a save takes, by the last that the log tells."""
        log = self.run / "events" / "rank-0.jsonl"
        found = re.findall(rb'"checkpoint/save_time_s":([0-9.e-]+)', log.read_bytes()[-20_000:])
        return statistics.median(map(float, found)) if found else 0.1

    def moment(self, kind: str) -> str:
        """What the victim was at, by what lies there now."""
        if kind.startswith("trainer"):
            partials = list((self.run / "checkpoints").glob(".partial-step-*"))
            if partials:
                is_told = any((partial / "manifest.json").is_file() for partial in partials)
                return "before the rename" if is_told else "writing"
            latest = self.run / "checkpoints" / "latest"
            newest = list_steps(self.run)[-1:]
            is_behind = newest and (not latest.exists() or not latest.read_text().strip().endswith(f"{newest[0]:08d}"))
            return "before latest" if is_behind else "between saves"
        if kind == "export":
            partials = list((self.run / "exports").glob(".partial-*"))
            if partials:
                return "proven, hidden" if (partials[0] / "proof.json").is_file() else "building or proving"
            return "at its ends"
        if kind == "prune":
            return "removing" if list((self.run / "checkpoints").glob(".trash-*")) else "deciding or between"
        return "at any point"

    def settle(self, kind: str) -> bool:
        """Let the next one do what was cut short; whether the log is in MLflow now."""
        if kind == "export" and self.draw.random() < 0.3 and (step := self.step_to_export()) is not None:
            self.must_child(self.victims.job("export", step=step), "the export after the kill", timed="export")
        if kind in ("ship", "service", "trainer and ship") or self.draw.random() < 0.1:
            self.must_child(self.victims.job("ship"), "the shipment after the kill", timed="ship")
            return True
        if kind == "prune" and self.draw.random() < 0.5:
            self.must_child(self.victims.job("prune"), "the pruning after the kill", timed=None)
        return False

    def check(self, promised: set[int], *, is_all_shipped: bool, sweeping: bool) -> list[str]:
        """In a process of its own, which may have threads and connections."""
        found = self.folder / "found.json"

        def act(_: Begun) -> int:
            wrong = [
                *invariants.check_checkpoints(self.run, known_newest=self.known_newest),
                *invariants.check_exports(self.run),
                *invariants.check_kept(self.run, promised),
            ]
            if (self.run / "run.json").exists():
                wrong += invariants.check_mlflow(self.run, self.victims.database, is_all_shipped=is_all_shipped)
            if sweeping:
                sweep(self.run, min_age_s=0)
                wrong += invariants.check_leftovers(self.run)
            found.write_text(json.dumps(wrong))
            return 0

        self.must_child(Child(act, self.folder / "check.log"), "the check", timed=None)
        self.known_newest = max(list_steps(self.run), default=0)
        return list(json.loads(found.read_text()))

    def end(self) -> list[str]:
        """The run is let to its end, and the service to its own."""
        for number, trainer in enumerate(
            self.victims.trainers(ranks=1, asynchronous=True, steps=max(list_steps(self.run)) + 3)
        ):
            self.must_child(trainer, f"the last trainer ({number})", timed=None)
        self.must_child(self.victims.service(until_done=True), "the last service", timed=None)
        wrong = self.check(set(), is_all_shipped=True, sweeping=True)
        if self.victims.server is not None:
            self.victims.server.kill()
        return wrong

    def step_to_export(self) -> int | None:
        """As the service would choose it."""
        known = max(invariants.visible_steps(self.run / "exports"), default=-1)
        pending = [step for step in list_steps(self.run) if step > known]
        return (pending[0] if self.exports == "every" else pending[-1]) if pending else None

    def must_child(self, child: Child, what: str, *, timed: str | None) -> None:
        """It is not killed, and has to come to a good end."""
        if timed:
            child.wait_until_begun()
        began_s = time.monotonic()
        code = child.end()
        if code:
            text = child.log.read_text()[-1500:]
            _say(wrong=[f"{what} ended with {code}: {text}"], number=self.number, kind=what, kills=[])
        elif timed:
            self.duration_s[timed] += 0.3 * (time.monotonic() - began_s - self.duration_s[timed])


@contextlib.contextmanager
def _damaged(checkpoint: Path) -> Iterator[None]:
    """One byte of a file is another one while the block runs."""
    path = checkpoint / read_manifest(checkpoint).files[0].path
    _flip_first_byte(path)
    os.utime(checkpoint / "manifest.json")  # what was found before is not believed
    yield
    _flip_first_byte(path)
    os.utime(checkpoint / "manifest.json")


def _flip_first_byte(path: Path) -> None:
    with path.open("r+b") as file:
        flipped = bytes([file.read(1)[0] ^ 1])
        file.seek(0)
        file.write(flipped)


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--mlflow", choices=["database", "server"], default="database")
    parser.add_argument("--exports", choices=["newest", "every"], default="newest")
    parser.add_argument("--only", choices=list(WEIGHTS), help="of all that may be let at the run, once it has a start")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    temporary = options.folder / "tmp"
    temporary.mkdir(parents=True)
    os.environ["TMPDIR"] = str(temporary)
    warm_up()
    settings = {"seed": options.seed, "mlflow_by": options.mlflow, "exports": options.exports, "only": options.only}
    lane = Lane(options.folder.resolve(), **settings)
    while lane.killed < options.kills:
        lane.trial()
    _say(wrong=lane.end(), number=lane.number, kind="the end", kills=[])
    _say(ended=True, steps=max(list_steps(lane.run)), trials=lane.number, buffers_left=lane.buffers_left)
    return 0


if __name__ == "__main__":
    sys.exit(main())
