from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from model.hf import PretrainedWeights, WeightsError, load_pretrained, save_pretrained
from model.parameters import to_huggingface_name


@pytest.fixture
def saved(make_model: Any, tmp_path: Path) -> Path:
    """A directory of ours with tied embeddings."""
    save_pretrained(make_model(), tmp_path / "saved")
    return tmp_path / "saved"


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_tensors(folder: Path, change: Any) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(WeightsError) as caught:
        PretrainedWeights(folder)
    return str(caught.value).replace(f"{folder}/", "").replace(f"{folder}: ", "").splitlines()


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_our_directory_with_the_same_logits(
    make_model: Any, tokens: Any, tmp_path: Path, tied: bool
) -> None:
    model = make_model(tie_word_embeddings=tied, rope_theta=130_000.0)
    save_pretrained(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=0, atol=5e-6)
    # element 1 of 4: theta^(-2/8)
    assert theirs.model.rotary_emb.inv_freq[1].item() == pytest.approx(130_000.0**-0.25)


@pytest.mark.parametrize("tied", [True, False])
def test_we_load_transformers_directory_with_the_same_logits(
    make_model: Any, make_twin: Any, tokens: Any, tmp_path: Path, tied: bool
) -> None:
    twin = make_twin(make_model(tie_word_embeddings=tied, rope_theta=130_000.0))
    twin.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    assert model.config.rope_theta == 130_000.0
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied
    torch.testing.assert_close(model(tokens), twin(tokens).logits, rtol=0, atol=5e-6)


def test_sharded_directory_loads(make_model: Any, make_twin: Any, tokens: Any, tmp_path: Path) -> None:
    model = make_model()
    make_twin(model).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert torch.equal(load_pretrained(tmp_path)(tokens), model(tokens))


def test_a_model_saved_over_shards_is_the_one_that_loads(make_model: Any, make_twin: Any, tmp_path: Path) -> None:
    make_twin(make_model()).save_pretrained(tmp_path, max_shard_size="20KB")
    model = make_model(dtype=torch.bfloat16)
    save_pretrained(model, tmp_path)
    assert torch.equal(load_pretrained(tmp_path).norm.weight, model.norm.weight)
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_a_single_file_is_taken_before_an_index(saved: Path, make_model: Any) -> None:
    # as transformers does
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert torch.equal(load_pretrained(saved).norm.weight, make_model().norm.weight)


def test_a_save_cut_short_leaves_no_model(make_model: Any, saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors").mkdir()
    with pytest.raises(WeightsError):
        save_pretrained(make_model(), saved)
    assert problems_of(saved) == ["has no config.json; wanted a Hugging Face model directory"]


def test_round_trip_keeps_every_bit(make_model: Any, tmp_path: Path) -> None:
    model = make_model(dtype=torch.bfloat16)
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config == model.config
    assert again.embed_tokens.weight.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_dtype_may_be_chosen_both_ways(make_model: Any, tmp_path: Path) -> None:
    save_pretrained(make_model(), tmp_path, dtype=torch.bfloat16)
    assert PretrainedWeights(tmp_path).dtype == torch.bfloat16
    assert load_pretrained(tmp_path, dtype=torch.float32).norm.weight.dtype == torch.float32


def test_tensors_are_read_one_by_one_by_our_names(saved: Path, make_model: Any) -> None:
    weights = PretrainedWeights(saved)
    wanted = dict(make_model().named_parameters())
    assert weights.names == list(wanted)
    assert all(torch.equal(weights.tensor(name), wanted[name]) for name in weights.names)


def test_tied_head_is_written_once(saved: Path) -> None:
    assert "lm_head.weight" not in safetensors.torch.load_file(saved / "model.safetensors")


def test_the_file_says_that_it_is_for_pytorch(saved: Path) -> None:
    # transformers refuses a file without it
    with safetensors.safe_open(saved / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_file_that_cannot_be_written_is_one_line(make_model: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be written: "):
        save_pretrained(make_model(), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_names_gain_the_prefix_of_hugging_face() -> None:
    assert to_huggingface_name("layers.11.mlp.up_proj.weight") == "model.layers.11.mlp.up_proj.weight"
    assert to_huggingface_name("lm_head.weight") == "lm_head.weight"


def test_tied_head_stored_twice_is_accepted_if_equal(saved: Path, make_model: Any) -> None:
    change_tensors(saved, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    model = load_pretrained(saved)
    assert model.lm_head.weight is model.embed_tokens.weight
    change_tensors(saved, lambda t: t["lm_head.weight"].add_(1))
    assert problems_of(saved) == [
        "tie_word_embeddings=true, but lm_head.weight differs from model.embed_tokens.weight; "
        "set tie_word_embeddings=false in config.json to keep both"
    ]


def test_all_differences_are_listed(saved: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.bias"] = torch.zeros(1)
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(40, 48)
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(48, 40)
        tensors["model.layers.1.mlp.gate_proj.weight"] = torch.zeros(40, 48, dtype=torch.int8)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    change_tensors(saved, damage)
    assert sorted(problems_of(saved)) == [
        "model.layers.0.mlp.bias is not a tensor of this architecture",
        "model.layers.1.mlp.gate_proj.weight is stored as I8; wanted one of BF16, F16, F32, F64",
        "model.layers.1.mlp.up_proj.weight has shape [48, 40], but config.json says [40, 48]",
        "model.layers.2.mlp.up_proj.weight is not a tensor of this architecture; "
        "config.json has fewer layers or tied embeddings",
        "model.norm.weight is missing; wanted shape [48]",
    ]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_named(saved: Path, value: float) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 2:4] = value

    change_tensors(saved, damage)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(saved)
    assert str(caught.value) == (
        f"{saved}: model.layers.1.mlp.up_proj.weight holds 2 of 1,920 values that are NaN or infinite; "
        "fetch it again, or take another checkpoint"
    )


def test_no_numbers_in_a_head_stored_twice_are_not_called_a_difference(saved: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][3, 2] = torch.nan
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_tensors(saved, damage)
    assert problems_of(saved) == [
        "lm_head.weight holds 1 of 4,656 values that are NaN or infinite; fetch it again, or take another checkpoint"
    ]


def test_norms_in_fp32_among_bf16_are_not_rounded(saved: Path) -> None:
    def mix(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].bfloat16()
        tensors["model.norm.weight"] = torch.full((48,), 1.001)

    change_tensors(saved, mix)
    assert PretrainedWeights(saved).dtype == torch.float32
    assert torch.equal(load_pretrained(saved).norm.weight, torch.full((48,), 1.001))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "none")[0].endswith(
        "no such folder; wanted a Hugging Face model directory on this machine"
    )


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert problems_of(tmp_path) == ["has no config.json; wanted a Hugging Face model directory"]


def test_a_config_that_is_not_json(saved: Path) -> None:
    (saved / "config.json").write_text('{"vocab_size": 97')
    assert "config.json: not JSON" in problems_of(saved)[0]


def test_a_folder_without_weights(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    assert problems_of(saved) == [
        "has neither model.safetensors nor model.safetensors.index.json "
        "(pytorch_model.bin is not read: convert it to safetensors)"
    ]


def test_a_missing_shard_is_named(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert problems_of(saved) == ["model-1.safetensors: named in model.safetensors.index.json but missing; fetch it"]


def test_a_truncated_file_is_named(saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert problems_of(saved)[0].startswith("model.safetensors: damaged safetensors file (")


def test_attention_may_be_chosen(saved: Path) -> None:
    assert load_pretrained(saved, attn_implementation="eager").attn_implementation == "eager"


def test_a_changed_layer_count_is_a_list_of_missing_tensors(saved: Path) -> None:
    change_config(saved, num_hidden_layers=3)
    assert len(problems_of(saved)) == 9
