from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from model.parameters import parameter_shapes, to_huggingface_name
from model.transformer import SmolLM2

HEAD_LAYOUTS = {"multi-head": 6, "grouped": 2, "multi-query": 1}


@pytest.fixture(
    params=itertools.product(HEAD_LAYOUTS, (True, False)), ids=lambda p: f"{p[0]}-{'' if p[1] else 'un'}tied"
)
def architecture(request: Any) -> dict[str, Any]:
    layout, tied = request.param
    return {"num_key_value_heads": HEAD_LAYOUTS[layout], "tie_word_embeddings": tied}


def named_gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_logits_equal_transformers(make_model: Any, make_twin: Any, tokens: Any, architecture: Any) -> None:
    model = make_model(dtype=torch.float64, **architecture)
    # fp64 but for norms, angles and transformers' softmax, which are fp32; the logits reach 10
    torch.testing.assert_close(model(tokens), make_twin(model)(tokens).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gradients_equal_transformers(
    make_model: Any, make_twin: Any, tokens: Any, architecture: Any, implementation: str
) -> None:
    model = make_model(dtype=torch.float64, attn_implementation=implementation, **architecture)
    twin = make_twin(model)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    model(inputs, labels=labels).backward()
    F.cross_entropy(twin(inputs).logits.flatten(0, 1), labels.flatten()).backward()
    wanted = named_gradients(twin)
    assert len(wanted) == len(list(model.parameters()))
    for name, gradient in named_gradients(model).items():
        torch.testing.assert_close(gradient, wanted[to_huggingface_name(name)], rtol=0, atol=1e-6, msg=name)


def test_loss_equals_transformers_own_loss(make_model: Any, make_twin: Any, tokens: Any) -> None:
    model = make_model()
    ours = model(tokens[:, :-1], labels=tokens[:, 1:])
    assert ours.dtype == torch.float32
    # fp32 sums in another order
    torch.testing.assert_close(ours, make_twin(model)(tokens, labels=tokens).loss, rtol=0, atol=2e-6)


def test_bf16_logits_are_as_close_to_fp32_as_transformers_are(make_model: Any, make_twin: Any, tokens: Any) -> None:
    exact = make_model()(tokens)
    model = make_model(dtype=torch.bfloat16)
    ours = (model(tokens).float() - exact).abs().mean()
    theirs = (make_twin(model)(tokens).logits.float() - exact).abs().mean()
    assert ours < 1.2 * theirs


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_table(make_model: Any, tied: bool) -> None:
    model = make_model(tie_word_embeddings=tied)
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert list(found.items()) == list(parameter_shapes(model.config).items())
    assert not list(model.named_buffers())


def test_tied_head_is_the_embedding(make_model: Any) -> None:
    model = make_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.embed_tokens.weight


def test_forgotten_initialisation_shows_in_the_first_loss(make_model: Any, tokens: Any) -> None:
    config = make_model().config
    assert SmolLM2(config)(tokens, labels=tokens).isnan()


def test_checkpointing_runs_each_layer_again_in_the_backward(make_model: Any, tokens: Any) -> None:
    model = make_model(activation_checkpointing="full")
    calls = []
    for layer in model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    loss = model(tokens, labels=tokens)
    forwards = [layer.mlp for layer in model.layers]
    assert calls == forwards
    loss.backward()
    assert calls == forwards + forwards[::-1]


def test_future_tokens_do_not_change_a_logit(make_model: Any, tokens: Any) -> None:
    model = make_model()
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % model.config.vocab_size
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=1e-6)
    assert (before[:, 20:] - after[:, 20:]).abs().max() > 0.1


def test_sequence_longer_than_positions_is_refused(make_model: Any) -> None:
    with pytest.raises(
        ValueError, match="a sequence of 65 tokens, but the model has max_position_embeddings=64; shorten"
    ):
        make_model()(torch.zeros(1, 65, dtype=torch.long))


def test_with_a_z_loss_coefficient_the_model_gives_both_terms(make_model: Any, tokens: torch.Tensor) -> None:
    model = make_model()
    labels = tokens.roll(-1, dims=1)
    total, cross_entropy = model(tokens, labels=labels, z_loss_coefficient=0.5)
    torch.testing.assert_close(cross_entropy, model(tokens, labels=labels).detach(), rtol=0, atol=0)
    z_loss = 0.5 * model(tokens).logsumexp(dim=-1).square().mean()
    torch.testing.assert_close(total - cross_entropy, z_loss, rtol=1e-4, atol=0)
