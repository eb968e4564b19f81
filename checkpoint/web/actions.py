"""What a person may ask of the service from the page or the API: export now, verify, evaluate again, pin, unpin."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from checkpoint.jobs import Job
from checkpoint.manifest import CheckpointError, export_directory, list_steps
from checkpoint.pins import pin, unpin
from checkpoint.service import Service

ActionName = Literal["export", "verify", "evaluate", "pin", "unpin"]


class Action(BaseModel):
    """One request. `run` is the name of a run that the status shows, and nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: ActionName
    run: str = Field(min_length=1, max_length=255)
    step: int = Field(ge=0, lt=10**12)


class UnknownTargetError(LookupError):
    """There is no such run, or no such checkpoint in it."""


def carry_out(service: Service, action: Action) -> str:
    """Do it, or put it into the queue; a line that says which. Raises UnknownTargetError, CheckpointError."""
    run = find_run(service, action.run)
    if action.step not in list_steps(run) and action.action != "unpin":
        raise UnknownTargetError(f"{action.run} has no checkpoint of step {action.step}")
    if action.action == "pin":
        pin(run, action.step)
        return f"step {action.step} of {action.run} is pinned"
    if action.action == "unpin":
        unpin(run, action.step)
        return f"step {action.step} of {action.run} is pinned no longer"
    if action.action == "evaluate" and service.config.evaluation is None:
        raise CheckpointError("the service's config says nothing of evaluation; give it `evaluation:`")
    if action.action == "export" and export_directory(run, action.step).exists():
        raise CheckpointError(f"step {action.step} of {action.run} is exported already; remove its export first")
    service.request(Job(kind=action.action, run=run, step=action.step))
    return f"{action.action} of step {action.step} of {action.run} is in the queue"


def find_run(service: Service, name: str) -> Path:
    """The folder of a run that the service looks after: a name is compared, and never made into a path."""
    for folder in service.run_folders():
        if folder.name == name:
            return folder
    raise UnknownTargetError(f"there is no run {name!r}")
