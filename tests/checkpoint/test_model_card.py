"""The model card says what the manifest and the run's record say, in the form that the hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from checkpoint.config import EvaluationConfig
from checkpoint.evaluation import Evaluation, write_evaluation
from checkpoint.export import renew_model_card
from checkpoint.export_folder import digest_export, read_proof
from checkpoint.manifest import CheckpointError, checkpoint_directory, export_directory, read_manifest
from checkpoint.run_watch import is_younger_than_proof

MEASURED = EvaluationConfig(lm_eval_tasks=("arc_easy",))


def card_of(run: Path) -> str:
    return (export_directory(run, 4) / "README.md").read_text()


def test_the_hub_reads_its_metadata(exported_run: Path) -> None:
    renew_model_card(exported_run, 4, license_name="apache-2.0")
    card = ModelCard.load(export_directory(exported_run, 4) / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["smollm2", "pretrained"],
    }


def test_it_tells_of_data_tokens_config_proof_and_licence(exported_run: Path) -> None:
    card, manifest = card_of(exported_run), read_manifest(checkpoint_directory(exported_run, 4))
    assert manifest.probe is not None
    for said in (
        f"pretrained on {manifest.tokens_consumed:,} tokens",
        "| train |  | `sha256:data` |",
        f"| config | `{manifest.config_digest}` |",
        f"| RoPE theta | {manifest.model['rope_theta']:,.0f} |",
        f"a loss of {manifest.probe.mean_negative_log_likelihood:.4f} nats",
        "None was stated when this model was exported.",
    ):
        assert said in card


def test_a_licence_is_not_invented(exported_run: Path) -> None:
    assert "license:" not in card_of(exported_run)


def test_the_licence_of_the_export_stays_until_another_is_named(exported_run: Path) -> None:
    for named, stated in (("apache-2.0", "apache-2.0"), (None, "apache-2.0"), ("mit", "mit"), (None, "mit")):
        renew_model_card(exported_run, 4, license_name=named)
        assert f"\nlicense: {stated}\n" in card_of(exported_run)
        assert f"## Licence\n\n{stated}\n" in card_of(exported_run)


@pytest.mark.parametrize("front_matter", [b"license: [a", b"- mit", b"license: \xff"])
def test_front_matter_that_cannot_be_read_is_told(exported_run: Path, front_matter: bytes) -> None:
    card = export_directory(exported_run, 4) / "README.md"
    card.write_bytes(b"---\n" + front_matter + b"\n---\n")
    with pytest.raises(
        CheckpointError,
        match=r"README\.md: the front matter, which may state a licence, cannot be read; remove the card",
    ):
        renew_model_card(exported_run, 4, license_name=None)
    renew_model_card(exported_run, 4, license_name="mit")
    assert "\nlicense: mit\n" in card_of(exported_run)


def test_a_user_is_told_the_dtype_of_the_export_and_of_the_training(exported_run: Path, edit_manifest: Any) -> None:
    edit_manifest(exported_run, 4, dtype="bfloat16")
    renew_model_card(exported_run, 4, license_name=None)
    for said in ('dtype="float32")', "| dtype of these weights | float32 |", "| dtype in training | bfloat16 |"):
        assert said in card_of(exported_run)


@pytest.mark.parametrize("config", ["{}", "[]", "{"])
def test_a_config_without_a_dtype_is_told(exported_run: Path, config: str) -> None:
    (export_directory(exported_run, 4) / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"config\.json names no dtype; remove the export and make it again"):
        renew_model_card(exported_run, 4, license_name=None)


def test_an_evaluation_comes_onto_the_card_and_leaves_the_proof_alone(exported_run: Path) -> None:
    folder = export_directory(exported_run, 4)
    found = {"perplexity/web": 12.34567, "lm_eval/arc_easy/acc": 0.25}
    versions = {"torch": "2"}
    evaluation = Evaluation(step=4, timestamp_ms=1, metrics=found, config=MEASURED, versions=versions)
    write_evaluation(exported_run, evaluation)
    renew_model_card(exported_run, 4, license_name=None)
    assert "| lm_eval/arc_easy/acc | 0.2500 |\n| perplexity/web | 12.3457 |" in card_of(exported_run)
    assert digest_export(folder) == read_proof(folder).files
    assert not is_younger_than_proof(folder)


def test_the_training_config_is_inside(exported_run: Path) -> None:
    (exported_run / "config.yaml").write_text("name: small\nsteps: 4\n")
    renew_model_card(exported_run, 4, license_name=None)
    assert "```yaml\nname: small\nsteps: 4\n```" in card_of(exported_run)


def test_a_step_that_is_not_published_has_none(exported_run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-00000002 of .* is not exported; run `smollm2 checkpoint export"):
        renew_model_card(exported_run, 2, license_name=None)
