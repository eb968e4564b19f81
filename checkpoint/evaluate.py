"""Measures a proven export: its perplexity on datasets, and tasks of the Language Model Evaluation Harness.

Each is what a user of the export would get: transformers loads the directory, and `lm_eval` runs as its own command
(https://github.com/EleutherAI/lm-evaluation-harness; extra `eval`).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoint.child_environment import child_environment
from checkpoint.config import EvaluationConfig
from checkpoint.evaluation import Evaluation, write_evaluation
from checkpoint.export_folder import Export, digest_file, find_export
from checkpoint.manifest import TOKENIZER_FILE, CheckpointError, step_name

logger = logging.getLogger(__name__)

_STANDARD_FILTER = "none"  # the harness' name for answers taken as they are


def evaluate_export(run: Path, step: int, config: EvaluationConfig) -> Evaluation:
    """Measure the proven export of a step and write what was found into the run's folder.

    Raises CheckpointError for a step without one, a dataset that is missing, empty, or of another tokenizer, and a task
    that fails or is not known.
    """
    import torch
    import transformers

    export = _proven(run, step)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    metrics = {}
    for name, folder in config.datasets.items():
        documents = _documents(name, folder, split=config.split, tokenizer_digest=_tokenizer_digest(export))
        metrics[f"perplexity/{name}"] = _perplexity(export, documents, config)
    if config.lm_eval_tasks:
        results, version = _run_lm_eval(export, config)
        metrics |= results
        versions["lm_eval"] = version
    for name in [name for name, value in metrics.items() if not math.isfinite(value)]:
        logger.warning("%s of %s is %s and is left out", name, step_name(step), metrics.pop(name))
    evaluation = Evaluation(
        step=step, timestamp_ms=int(time.time() * 1000), metrics=metrics, config=config, versions=versions
    )
    write_evaluation(run, evaluation)
    return evaluation


def _proven(run: Path, step: int) -> Export:
    export = find_export(run, step)
    if export is None or not export.passed:
        raise CheckpointError(
            f"{step_name(step)} of {run} has no proven export; run `smollm2 checkpoint export {run} --step {step}`"
        )
    return export


def _tokenizer_digest(export: Export) -> str:
    return digest_file(export.directory / TOKENIZER_FILE)


def _documents(name: str, folder: Path, *, split: str, tokenizer_digest: str) -> Iterator[list[int]]:
    """The ids of one document after the other. Raises CheckpointError for what is no dataset of this tokenizer."""
    import datasets

    what = f"evaluation.datasets.{name}: {folder}"
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        made_with, splits = manifest["tokenizer"]["digest"], sorted(manifest["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{what} is no dataset of `smollm2 pipeline run` (no readable manifest.json)") from None
    if made_with != tokenizer_digest:
        raise CheckpointError(
            f"{what} was made with another tokenizer ({made_with[:19]}…) than the export's ({tokenizer_digest[:19]}…); "
            "make it with the run's"
        )
    if split not in splits:
        raise CheckpointError(f"{what} has no split {split!r}, but {', '.join(splits)}; set evaluation.split")
    # the training split lies in the folder itself, the others below it
    place = folder if split == "train" else folder / split
    try:
        rows = datasets.load_from_disk(str(place)).select_columns("input_ids").with_format("numpy")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{what} is not whole ({' '.join(str(error).split())[:200]}); restore it, or evaluate on another"
        ) from None
    return (row["input_ids"].tolist() for row in rows)


def _perplexity(export: Export, documents: Iterator[list[int]], config: EvaluationConfig) -> float:
    """exp of the mean negative log-likelihood over the first `max_tokens` ids that have one before them.

    Each document by itself, as in training with document masking; one longer than the model's positions in windows,
    each of which begins with the last id of the one before.
    """
    import torch
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        export.directory, local_files_only=True, dtype=getattr(torch, export.proof.dtype)
    )
    model = model.eval().to(config.device)
    positions = model.config.max_position_embeddings
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids in documents:
            for begin in range(0, len(ids) - 1, positions - 1):
                end = begin + min(positions, config.max_tokens - count + 1)
                window = torch.tensor([ids[begin:end]], device=config.device)
                logits = model(input_ids=window, use_cache=False).logits[0, :-1].float()
                total += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
                count += window.shape[1] - 1
                if count >= config.max_tokens:
                    return math.exp(total / count)
    if not count:
        raise CheckpointError(f"evaluation.split: {config.split!r} holds no document of two ids or more")
    return math.exp(total / count)


def _run_lm_eval(export: Export, config: EvaluationConfig) -> tuple[dict[str, float], str]:
    """The harness' numbers by `lm_eval/TASK/METRIC`, and its version. Raises CheckpointError."""
    if importlib.util.find_spec("lm_eval") is None:
        raise CheckpointError("evaluation.lm_eval_tasks needs the package lm-eval; pip install -e '.[eval]'")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "lm_eval", "--model", "hf",
            "--model_args", f"pretrained={export.directory},dtype={export.proof.dtype}",
            "--tasks", ",".join(config.lm_eval_tasks), "--device", config.device, "--output_path", folder,
        ]  # fmt: skip
        if config.lm_eval_include is not None:
            command += ["--include_path", str(config.lm_eval_include)]
        if config.lm_eval_limit is not None:
            command += ["--limit", str(config.lm_eval_limit)]
        done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=False)
        results = sorted(Path(folder).rglob("results_*.json"))
        if done.returncode or not results:
            last_line = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
            raise CheckpointError(f"lm_eval {','.join(config.lm_eval_tasks)} failed: {last_line}")
        report = json.loads(results[-1].read_text(encoding="utf-8"))
    return dict(_lm_eval_metrics(report["results"])), str(report.get("lm_eval_version", "unknown"))


def _lm_eval_metrics(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for task, fields in results.items():
        for key, value in fields.items():
            metric, comma, answers = key.partition(",")
            if comma and isinstance(value, float | int) and not metric.endswith("_stderr"):
                suffix = "" if answers == _STANDARD_FILTER else f",{answers}"
                yield f"lm_eval/{task}/{metric}{suffix}", float(value)
