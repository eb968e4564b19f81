"""Text against transformers' own generate on the same directory, and the errors by message."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import torch

from launch.generate import GenerateError, add_generate_verb, find_model, generate

PROMPT = "t5 t17 t3 t120"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """On matrices this small a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory, make_dataset) -> Path:
    return make_dataset(tmp_path_factory.mktemp("tokenizer") / "dataset", [[1, 2]]) / "tokenizer.json"


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def directory_in(request, tmp_path_factory, tokenizer_file) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", tokenizer_file, dtype=getattr(torch, request.param))


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tokenizer_file) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", tokenizer_file, dtype=torch.float32)


def write_model(folder: Path, tokenizer_file: Path, *, dtype: torch.dtype) -> Path:
    """A tiny random model written by transformers, 256 words, 64 positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,  # large, so that the text is more than one word repeated
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    shutil.copy(tokenizer_file, folder)
    return folder


@pytest.mark.parametrize("prompt", [PROMPT, "t1"])
def test_greedy_text_is_that_of_transformers(directory_in, prompt):
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(directory_in / "tokenizer.json"))
    theirs = AutoModelForCausalLM.from_pretrained(directory_in, dtype=torch.float32)
    token_ids = torch.tensor([tokenizer.encode(prompt).ids])
    generated = theirs.generate(
        token_ids, attention_mask=torch.ones_like(token_ids), do_sample=False, max_new_tokens=30, pad_token_id=0
    )
    expected = tokenizer.decode(generated[0].tolist(), skip_special_tokens=True)
    assert generate(directory_in, prompt, max_new_tokens=30) == expected
    assert expected.startswith(prompt)
    assert len(expected.split()) > len(prompt.split())


def test_generation_stops_at_the_end_of_sequence(directory, tmp_path, monkeypatch):
    from model.transformer import SmolLM2

    calls = []
    forward = SmolLM2.forward
    monkeypatch.setattr(SmolLM2, "forward", lambda self, ids: calls.append(ids.shape) or forward(self, ids))
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(directory, tmp_path / "ending")
    tensors = load_file(folder / "model.safetensors")
    # a final norm of zeros makes all logits equal, and the first of equal ones, id 0, is the end
    tensors["model.norm.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert generate(folder, PROMPT, max_new_tokens=5) == PROMPT
    assert calls == [(1, 4)]


def test_drawn_text_depends_on_the_seed_alone(directory):
    first, again, other = (
        generate(directory, PROMPT, max_new_tokens=20, temperature=1.5, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_low_temperature_is_nearly_greedy(directory):
    greedy = generate(directory, PROMPT, max_new_tokens=20)
    assert generate(directory, PROMPT, max_new_tokens=20, temperature=1e-4, seed=3) == greedy


def test_an_empty_prompt_begins_a_document(directory):
    text = generate(directory, "", max_new_tokens=5)
    assert "<|endoftext|>" not in text


def test_a_run_folder_means_its_newest_export(directory, tmp_path):
    exports = tmp_path / "run" / "exports"
    for name in ("step-00000005", "step-00000100", ".quarantine-step-00000200"):
        shutil.copytree(directory, exports / name)
    (exports / "step-00000300").mkdir()
    assert find_model(tmp_path / "run") == exports / "step-00000100"
    assert generate(tmp_path / "run", PROMPT, max_new_tokens=4) == generate(directory, PROMPT, max_new_tokens=4)


def test_a_run_without_an_export_says_how_to_make_one(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    with pytest.raises(GenerateError, match=r"has no export yet; once it has saved .* `smollm2 checkpoint export"):
        find_model(tmp_path / "run")


def test_folders_that_are_no_model_are_one_line(tmp_path):
    with pytest.raises(GenerateError, match="no such folder"):
        find_model(tmp_path / "missing")
    with pytest.raises(GenerateError, match=r"neither a Hugging Face model directory \(no config.json\) nor a run"):
        find_model(tmp_path)


def test_a_prompt_longer_than_the_positions_is_one_line(directory):
    with pytest.raises(GenerateError, match=r"prompt has 64 tokens, the model has max_position_embeddings=64; shorten"):
        generate(directory, "t1 " * 64, max_new_tokens=1)
    with pytest.raises(GenerateError, match="ask for at most 4 new tokens"):
        generate(directory, "t1 " * 60, max_new_tokens=5)


def test_the_last_position_can_be_used(directory):
    assert len(generate(directory, "t1 " * 63, max_new_tokens=1).split()) in (63, 64)


def test_a_missing_or_broken_tokenizer_is_one_line(directory, tmp_path):
    folder = shutil.copytree(directory, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(GenerateError, match=r"tokenizer.json is not a tokenizer"):
        generate(folder, PROMPT, max_new_tokens=1)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(GenerateError, match=r"has no tokenizer.json; copy the one"):
        generate(folder, PROMPT, max_new_tokens=1)


def test_a_tokenizer_of_another_model_is_one_line(directory, tmp_path, make_dataset):
    folder = shutil.copytree(directory, tmp_path / "model")
    other = make_dataset(tmp_path / "other", [[1]], vocab_size=400)
    shutil.copy(other / "tokenizer.json", folder)
    with pytest.raises(GenerateError, match="gives id 399, but the model has vocab_size=256"):
        generate(folder, "t399", max_new_tokens=1)


def test_damaged_weights_are_one_line(directory, tmp_path):
    folder = shutil.copytree(directory, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(GenerateError, match=r"model\.safetensors"):
        generate(folder, PROMPT, max_new_tokens=1)


def test_settings_out_of_range_are_one_line(directory):
    with pytest.raises(GenerateError, match="max_new_tokens=0; ask for at least 1"):
        generate(directory, PROMPT, max_new_tokens=0)
    with pytest.raises(GenerateError, match=r"temperature=-1.0; use 0 for the likeliest token"):
        generate(directory, PROMPT, max_new_tokens=1, temperature=-1.0)


def test_verb_prints_the_text(directory, capsys):
    parser = argparse.ArgumentParser()
    add_generate_verb(parser.add_subparsers())
    parsed = parser.parse_args(["generate", str(directory), PROMPT, "--max-new-tokens", "3"])
    parsed.run(parsed)
    assert capsys.readouterr().out == generate(directory, PROMPT, max_new_tokens=3) + "\n"
