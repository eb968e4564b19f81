from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.load import load
from model.cli import main
from model.config import SmolLM2Config
from model.hf_config import huggingface_config

MODELS = Path(__file__).resolve().parents[2] / "configs" / "model"


def test_describe_prints_both_tallies_of_the_seed_and_where_they_part(capsys: Any) -> None:
    assert main(["describe", str(MODELS / "smollm2-seed.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "147,786,048" in printed
    assert "121,243,968" in printed
    assert "30 x 576 x 1536 = 26,542,080 parameters fewer" in printed


def test_describe_prints_the_published_total(capsys: Any) -> None:
    assert main(["describe", str(MODELS / "smollm2-135m.yaml")]) == 0
    assert "134,515,008" in capsys.readouterr().out


def test_json_holds_the_figures_and_takes_overrides(capsys: Any) -> None:
    assert (
        main(["describe", str(MODELS / "demo.yaml"), "num_hidden_layers=1", "--sequence-length", "10", "--json"]) == 0
    )
    figures = json.loads(capsys.readouterr().out)
    # embedding 1,048,576; attention 49,152; mlp 147,456; norms 3 × 128
    assert figures["parameters"]["total"] == 1_048_576 + 49_152 + 147_456 + 384
    assert figures["flops_per_token"] == 6 * 1_245_568 + 12 * 1 * 128 * 10
    assert figures["config"]["num_hidden_layers"] == 1


def test_needed_flops_stand_beside_the_stated(capsys: Any) -> None:
    command = ["describe", str(MODELS / "demo.yaml"), "--sequence-length", "10", "--document-length", "5"]
    assert main([*command, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    config = figures["config"]
    # 15 pairs in a document of five tokens
    weights = figures["parameters"]["total"] - figures["parameters"]["norms"]
    assert figures["true_flops_per_token"] == 6 * weights + 12 * config["num_hidden_layers"] * 128 * 3
    assert main(command) == 0
    assert "causal, within documents of 5 tokens, norms not counted" in capsys.readouterr().out


def test_document_longer_than_a_sequence_is_refused(capsys: Any) -> None:
    assert main(["describe", str(MODELS / "demo.yaml"), "--document-length", "5000"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--document-length 5000 is longer than a sequence of 2048 tokens; give at most 2048" in line


def test_shares_fall_with_the_gpus(capsys: Any) -> None:
    main(["describe", str(MODELS / "smollm2-1.7b.yaml")])
    # 18 × 1,711,376,384 bytes = 28.69 GiB
    assert "28.69 GiB on 1, 3.59 GiB on 8, 0.45 GiB on 64" in capsys.readouterr().out


def test_a_small_share_is_told_in_kibibytes(capsys: Any) -> None:
    main(["describe", str(MODELS / "demo.yaml"), "num_hidden_layers=1", "vocab_size=256", "intermediate_size=32"])
    share = capsys.readouterr().out.partition("a GPU's share: ")[2].splitlines()[0]
    # 18 x 94,592 bytes
    assert share.startswith("1.6 MiB on 1, 0.2 MiB on 8, 26.0 KiB on 64")


def test_a_folder_of_weights_is_described_by_its_config(tmp_path: Path, capsys: Any) -> None:
    config = load(MODELS / "smollm2-135m.yaml", SmolLM2Config)
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(config, dtype="bfloat16")))
    assert main(["describe", str(tmp_path)]) == 0
    assert "134,515,008" in capsys.readouterr().out


def test_a_folder_of_weights_takes_no_overrides(tmp_path: Path, capsys: Any) -> None:
    assert main(["describe", str(tmp_path), "hidden_size=768"]) == 2
    assert capsys.readouterr().err == (
        f"smollm2 model: {tmp_path} is a folder of weights, which takes no overrides (got hidden_size=768); leave them "
        "out, or name a model's YAML file\n"
    )


def test_a_folder_without_weights_is_one_line(capsys: Any) -> None:
    assert main(["describe", str(MODELS)]) == 2
    assert "has no config.json; wanted a Hugging Face model directory" in capsys.readouterr().err


def test_a_wrong_override_is_one_line_and_exit_2(capsys: Any) -> None:
    assert main(["describe", str(MODELS / "demo.yaml"), "num_attention_heads=3"]) == 2
    error = capsys.readouterr().err
    assert error.endswith(
        "num_attention_heads=3 does not divide hidden_size=128; nearest with an even head_dim: num_attention_heads=2\n"
    )
    assert len(error.splitlines()) == 1


def test_a_length_that_is_not_positive_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["describe", str(MODELS / "demo.yaml"), "--sequence-length", "0"])
    assert exit_.value.code == 2
    assert "'0' is not a positive number of tokens" in capsys.readouterr().err
