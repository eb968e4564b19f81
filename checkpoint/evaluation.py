"""What was measured of an export, by choice: `RUN/evaluations/step-00000100.json`. Loads neither torch nor MLflow.

Beside the exports and not in them, because an export stays what was proven.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoint.config import EvaluationConfig
from checkpoint.manifest import CheckpointError, step_name, sync_directory, write_durably


class Evaluation(BaseModel):
    """Of one step. `metrics`: `perplexity/NAME` of a dataset and `lm_eval/TASK/METRIC`; `config` is what was asked for.

    The time is that of the evaluation, so that MLflow is sent the same rows however often they are sent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    timestamp_ms: int
    metrics: dict[str, float]
    config: EvaluationConfig
    versions: dict[str, str]


def evaluations_directory(run: Path) -> Path:
    return run / "evaluations"


def evaluation_file(run: Path, step: int) -> Path:
    return evaluations_directory(run) / f"{step_name(step)}.json"


def read_evaluation(run: Path, step: int) -> Evaluation | None:
    """None if there is none. Raises CheckpointError for a file that is no evaluation."""
    path = evaluation_file(run, step)
    try:
        return Evaluation.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, ValidationError) as error:
        reason = " ".join(str(error).split())[:150]
        raise CheckpointError(f"{path} is not an evaluation ({reason}); remove it to evaluate again") from None


def write_evaluation(run: Path, evaluation: Evaluation) -> None:
    evaluations_directory(run).mkdir(exist_ok=True)
    sync_directory(run)
    write_durably(evaluation_file(run, evaluation.step), (evaluation.model_dump_json(indent=1) + "\n").encode())


def list_evaluations(run: Path) -> dict[int, Evaluation]:
    """Every readable one by step, ascending."""
    found = {}
    for path in sorted(evaluations_directory(run).glob("step-*.json")):
        number = path.stem.removeprefix("step-")
        try:
            evaluation = read_evaluation(run, int(number)) if number.isdecimal() else None
        except CheckpointError:
            continue  # the job that makes it again says so
        if evaluation is not None:
            found[evaluation.step] = evaluation
    return found
