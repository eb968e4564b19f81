"""An export is measured as its user would, and what cannot be measured is told in one line."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from checkpoint import evaluate
from checkpoint.config import EvaluationConfig
from checkpoint.evaluate import evaluate_export
from checkpoint.evaluation import evaluation_file, list_evaluations, read_evaluation
from checkpoint.manifest import CheckpointError, export_directory
from checkpoint.mlflow_run import EXPERIMENT
from checkpoint.service import DATABASE_FILE, Service
from checkpoint.tracking import Tracker
from model.hf import load_pretrained
from pipeline.config import PipelineConfig
from pipeline.run import run as run_pipeline

WORDS = "the loss falls while the model learns the text "
# some longer than the model's 512 positions, in both splits
TEXTS = [*(f"{WORDS * 100} {number}" for number in range(6)), *(f"{WORDS} {number}" for number in range(20))]


@pytest.fixture(scope="module")
def made_dataset(pristine_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pipeline makes of a few texts with the runs' tokenizer: half of them are the validation split."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    config = {
        "name": "web",
        "output_dir": str(folder / "web"),
        "tokenizer": {"path": str(pristine_runs / "run-float32" / "tokenizer.json")},
        "sources": [{"name": "web", "type": "jsonl", "files": [str(folder / "texts.jsonl")]}],
        "validation_fraction": 0.5,
    }
    (folder / "web.yaml").write_text(json.dumps(config))
    run_pipeline(PipelineConfig.model_validate(config))
    return folder / "web"


@pytest.fixture
def web(made_dataset: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(made_dataset, tmp_path / "web")


def our_perplexity(export: Path, rows: list[list[int]], *, tokens: int) -> float:
    """By our own model, a prediction at a time in the order of the text."""
    model = load_pretrained(export).eval()
    losses: list[float] = []
    for ids in rows:
        for begin in range(0, len(ids) - 1, 511):
            window = torch.tensor([ids[begin : begin + 512]])
            with torch.inference_mode():
                log_probabilities = model(window)[0].float().log_softmax(-1)
            losses += [-float(log_probabilities[at, token]) for at, token in enumerate(window[0, 1:].tolist())]
    return math.exp(sum(losses[:tokens]) / len(losses[:tokens]))


def test_the_training_split_is_measured_where_it_is_asked_for(exported_run: Path, web: Path) -> None:
    found = evaluate_export(exported_run, 4, EvaluationConfig(datasets={"web": web}, split="train", max_tokens=100))
    rows = list(datasets.load_from_disk(str(web))["input_ids"])
    wanted = our_perplexity(export_directory(exported_run, 4), rows, tokens=100)
    assert found.metrics == {"perplexity/web": pytest.approx(wanted, rel=1e-4)}


@pytest.mark.parametrize("max_tokens", [3, 4, 515, 516, 5000])
def test_perplexity_is_that_of_our_own_model(exported_run: Path, web: Path, max_tokens: int) -> None:
    found = evaluate_export(exported_run, 4, EvaluationConfig(datasets={"web": web}, max_tokens=max_tokens))
    rows = list(datasets.load_from_disk(str(web / "validation"))["input_ids"])
    assert max(map(len, rows)) > 512
    wanted = our_perplexity(export_directory(exported_run, 4), rows, tokens=max_tokens)
    assert found.metrics == {"perplexity/web": pytest.approx(wanted, rel=1e-4)}
    assert read_evaluation(exported_run, 4) == found


def test_a_step_without_a_proven_export_is_refused(exported_run: Path, web: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-00000002 of .* has no proven export; run .* --step 2"):
        evaluate_export(exported_run, 2, EvaluationConfig(datasets={"web": web}))


def test_what_is_no_dataset_of_this_tokenizer_is_refused(exported_run: Path, web: Path, tmp_path: Path) -> None:
    def measure(folder: Path, **settings: Any) -> None:
        evaluate_export(exported_run, 4, EvaluationConfig(datasets={"web": folder}, **settings))

    with pytest.raises(CheckpointError, match="is no dataset of `smollm2 pipeline run`"):
        measure(tmp_path / "nothing")
    shard = next(web.glob("*.arrow"))
    shard.rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"is not whole \(.*\); restore it, or evaluate on another"):
        measure(web, split="train")
    (tmp_path / "away").rename(shard)
    with pytest.raises(CheckpointError, match=r"has no split 'test', but train, validation; set evaluation\.split"):
        measure(web, split="test")
    manifest = json.loads((web / "manifest.json").read_text())
    manifest["tokenizer"]["digest"] = "sha256:another"
    (web / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="was made with another tokenizer"):
        measure(web)
    assert list_evaluations(exported_run) == {}


class TestLmEval:
    """With a stand-in of the harness' command; `make test-exports` runs the real one."""

    @pytest.fixture
    def harness(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
        """Installs a package `lm_eval` whose command is the given lines of Python; the file with its arguments."""
        calls = tmp_path / "calls.json"

        def install(body: str) -> Path:
            package = tmp_path / "packages" / "lm_eval"
            package.mkdir(parents=True)
            (package / "__init__.py").touch()
            head = f"import json, pathlib, sys\npathlib.Path({str(calls)!r}).write_text(json.dumps(sys.argv[1:]))\n"
            (package / "__main__.py").write_text(head + body)
            path = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
            monkeypatch.setenv("PYTHONPATH", path)
            monkeypatch.syspath_prepend(str(package.parent))
            return calls

        return install

    def test_its_numbers_are_taken_without_standard_errors(
        self, exported_run: Path, harness: Callable[[str], Path], tmp_path: Path
    ) -> None:
        results = {"arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "exact,strict": 1, "n,none": "N/A"}}
        results["arc"]["f1,none"] = math.nan  # JSON has no such number, and what is written must be readable
        calls = harness(
            "folder = pathlib.Path(sys.argv[sys.argv.index('--output_path') + 1]) / 'model'; folder.mkdir()\n"
            f"nan = float('nan'); report = {{'results': {results!r}, 'lm_eval_version': '0.4'}}\n"
            "(folder / 'results_1.json').write_text(json.dumps(report))\n"
        )
        config = EvaluationConfig(lm_eval_tasks=("arc", "hella"), lm_eval_include=tmp_path, lm_eval_limit=7)
        found = evaluate_export(exported_run, 4, config)
        assert found.metrics == {"lm_eval/arc/acc": 0.5, "lm_eval/arc/exact,strict": 1.0}
        assert found.versions["lm_eval"] == "0.4"
        assert read_evaluation(exported_run, 4) == found
        call = json.loads(calls.read_text())
        assert call[call.index("--tasks") + 1] == "arc,hella"
        assert call[call.index("--limit") + 1] == "7"
        assert call[call.index("--include_path") + 1] == str(tmp_path)

    def test_what_lies_in_the_current_folder_is_not_it(
        self, exported_run: Path, harness: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        harness("sys.exit('the installed one')\n")
        (exported_run / "lm_eval.py").write_text("raise SystemExit('the one that lies there')")
        monkeypatch.chdir(exported_run)
        with pytest.raises(CheckpointError, match="lm_eval arc failed: the installed one"):
            evaluate_export(exported_run, 4, EvaluationConfig(lm_eval_tasks=("arc",)))

    def test_its_last_words_are_the_reason(self, exported_run: Path, harness: Callable[[str], Path]) -> None:
        harness("sys.exit('no such task: arc')\n")
        with pytest.raises(CheckpointError, match="lm_eval arc failed: no such task: arc"):
            evaluate_export(exported_run, 4, EvaluationConfig(lm_eval_tasks=("arc",)))
        assert not evaluation_file(exported_run, 4).exists()

    def test_without_the_package_the_extra_is_named(self, exported_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(CheckpointError, match=r"needs the package lm-eval; pip install -e '.\[eval\]'"):
            evaluate_export(exported_run, 4, EvaluationConfig(lm_eval_tasks=("arc",)))


class TestService:
    """What `evaluation` in the service's config brings about."""

    @pytest.fixture(autouse=True)
    def database(self, empty_database: Path, exported_run: Path) -> None:
        """MLflow's tables beside the runs, which would take seconds to make."""
        shutil.copy(empty_database, exported_run.parent / DATABASE_FILE)

    def test_it_measures_before_it_publishes_and_tells_card_page_and_mlflow(
        self, exported_run: Path, web: Path, tmp_path: Path, make_service: Callable[..., Service]
    ) -> None:
        target = str(tmp_path / "published")
        settings: dict[str, Any] = {"evaluation": {"datasets": {"web": str(web)}}, "publish_to": [target]}
        status = make_service(exported_run.parent, **settings).run_until_done()
        assert status.problems == []
        evaluation = read_evaluation(exported_run, 4)
        assert evaluation is not None
        (run,) = status.runs
        assert run.checkpoints[0].measured == evaluation.metrics
        card = tmp_path / "published" / "small-float32" / "step-00000004" / "README.md"
        assert f"| perplexity/web | {evaluation.metrics['perplexity/web']:.4f} |" in card.read_text()
        rows = self.rows(exported_run.parent)
        assert rows == [(4, evaluation.timestamp_ms, evaluation.metrics["perplexity/web"])]
        # nothing is measured again, and what is sent again is the same row
        (exported_run / "service" / "journal.json").unlink()
        service = make_service(exported_run.parent, **settings)
        service.run_until_done()
        assert self.performed(service) == ["ship"]
        assert self.rows(exported_run.parent) == rows

    def test_another_config_measures_again(
        self, exported_run: Path, web: Path, make_service: Callable[..., Service]
    ) -> None:
        for max_tokens in (10, 20):
            evaluation = {"datasets": {"web": str(web)}, "max_tokens": max_tokens}
            service = make_service(exported_run.parent, evaluation=evaluation)
            service.run_until_done()
            assert "evaluate step-00000004" in self.performed(service)

    def test_what_cannot_be_measured_is_told_and_published_all_the_same(
        self, exported_run: Path, tmp_path: Path, make_service: Callable[..., Service]
    ) -> None:
        target, missing = tmp_path / "published", tmp_path / "missing"
        service = make_service(
            exported_run.parent,
            evaluation={"datasets": {"web": str(missing)}},
            publish_to=[str(target)],
            jobs={"attempts": 1},
        )
        (problem,) = service.run_until_done().problems
        assert problem.startswith(f"{exported_run.name}: evaluate step-00000004: evaluation.datasets.web: {missing} is")
        assert (target / "small-float32" / "step-00000004").is_dir()

    def performed(self, service: Service) -> list[str]:
        return [job.what for job in service._runner.performed if job.kind != "curve"]  # type: ignore[attr-defined]

    def rows(self, runs: Path) -> list[tuple[int, int, float]]:
        client = Tracker(f"sqlite:///{runs / DATABASE_FILE}").client
        (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
        history = client.get_metric_history(run.info.run_id, "evaluation/perplexity/web")
        return [(row.step, row.timestamp, row.value) for row in history]


def test_the_module_of_the_record_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, checkpoint.evaluation; assert not {'torch', 'transformers', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
