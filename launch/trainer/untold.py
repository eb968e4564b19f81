"""What a kill between a checkpoint and its telling left out of the event log, told by the next start.

A checkpoint is published first and told afterwards. A run killed in between would show its last checkpoint, and its
end, to nobody: a resume goes on behind them.
"""

from __future__ import annotations

from pathlib import Path

from checkpoint.events import EventWriter, events_file, read_events
from checkpoint.manifest import checkpoint_directory


def tell_untold(run_dir: Path, *, step: int, finished: bool) -> None:
    """Append the checkpoint event of `step` and, of a finished run, its state, where the log lacks them.

    Only while holding the run's lock. Reads the whole log: some seconds for a million steps.
    """
    file = events_file(run_dir)
    checkpoint_told, state = False, None
    for event, _ in read_events(file):
        checkpoint_told |= event.kind == "checkpoint" and event.step == step
        state = event.fields.get("state") if event.kind == "state" else state
    state_told = state == "finished" or not finished
    if checkpoint_told and state_told:
        return
    with EventWriter(file) as events:
        if not checkpoint_told:
            path = checkpoint_directory(run_dir, step).relative_to(run_dir)
            events.write("checkpoint", step=step, path=str(path))
        if not state_told:
            events.write("state", step=step, state="finished")
        events.sync()
