"""The training config: what it refuses and in which words, and the recipes in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from configs.load import ConfigError, dump, load
from launch.config import AttentionImplementation, ScheduleConfig, TrainConfig, TrainingError, flatten
from launch.trainer.schedules import SCHEDULES
from model import loss_selection
from model.attention_backends.selection import NAMES

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "train"


def tree(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "run_dir": "run",
        "name": "tiny",
        "model": {
            "vocab_size": 256,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        "data": {"sources": [{"name": "a", "path": "data/a"}], "sequence_length": 64},
        "batch_tokens": 1024,
        "micro_batch_size": 4,
        "steps": 100,
        "optimizer": {"learning_rate": "1e-3"},
        "schedule": {"name": "wsd", "warmup_steps": 10, "decay_steps": 20},
        "checkpoint": {"every_steps": 50},
        "validation": {"every_steps": 50, "sequences": 8},
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        node = settings
        for parent in parents:
            node = node[parent]
        node[last] = value
    return settings


def message(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(tree(**changes))
    return str(caught.value)


def test_sequence_longer_than_positions_is_refused() -> None:
    assert "data.sequence_length=128 is longer than model.max_position_embeddings=64; use at most 64" in message(
        data__sequence_length=128
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"muon_learning_rate": 0.02}, "muon_learning_rate=0.02 means nothing to adamw; remove it, or take muon"),
        ({"name": "muon"}, "muon needs muon_learning_rate for the layers' matrices; its authors' is 0.02"),
        (
            {"name": "muon", "muon_learning_rate": 0.02},
            "gradient_clipping=1.0 with muon would shrink Muon's updates, whose norm does not come from the gradient's"
            "; set gradient_clipping=0",
        ),
    ],
)
def test_an_optimizer_that_does_not_fit_together_is_refused(changes: dict[str, Any], line: str) -> None:
    assert line in message(optimizer={"learning_rate": 1e-3, **changes})


@pytest.mark.parametrize("precision", ["fp8", "float8_e4m3fn"])
def test_fp8_is_refused_by_name(precision: str) -> None:
    line = f"fp8 training is not supported (got {precision}): nothing of it could be tested without a GPU; use bfloat16"
    assert line in message(precision=precision)


@pytest.mark.parametrize(
    "changes",
    [
        {"z_loss_coefficient": float("inf")},
        {"optimizer": {"learning_rate": float("inf")}},
        {"optimizer": {"learning_rate": 1e-3, "weight_decay": float("inf")}},
    ],
)
def test_a_number_without_end_is_refused(changes: dict[str, Any]) -> None:
    assert "Input should be a finite number" in message(**changes)


def test_muons_momentum_is_not_kept_in_bfloat16() -> None:
    muon = {"name": "muon", "learning_rate": 1e-3, "muon_learning_rate": 0.02, "gradient_clipping": 0}
    line = "zero.reduce_dtype=bfloat16 with optimizer.name=muon would keep Muon's momentum in it; use float32"
    assert line in message(optimizer=muon, zero={"reduce_dtype": "bfloat16"})


def test_warmup_and_decay_longer_than_the_run_are_refused() -> None:
    assert "warmup_steps + schedule.decay_steps = 110 is more than steps=100" in message(schedule__warmup_steps=90)


def test_batch_that_no_rank_could_split_is_refused_with_the_nearest() -> None:
    assert "batch_tokens=1000 is not a multiple of data.sequence_length * micro_batch_size = 256; use 768 or 1024" in (
        message(batch_tokens=1000)
    )


def test_batch_smaller_than_a_micro_batch_names_the_one_that_works() -> None:
    assert "= 256; use 256" in message(batch_tokens=100)


def test_batch_that_does_not_divide_over_the_ranks_is_refused() -> None:
    config = TrainConfig.model_validate(tree())
    with pytest.raises(
        TrainingError, match=r"micro_batch_size \* 3 ranks = 768; start 2 or 4 ranks, over .*"
    ) as caught:
        config.accumulation_steps(world_size=3)
    assert str(caught.value).endswith(
        "over which its 4 micro-batches of micro_batch_size=4 divide, or use batch_tokens=768 or 1536"
    )


def test_more_ranks_than_micro_batches_name_the_most_that_work() -> None:
    config = TrainConfig.model_validate(tree())
    with pytest.raises(TrainingError, match=r"= 1280; start 4 ranks, over which .*, or use batch_tokens=1280"):
        config.accumulation_steps(world_size=5)


def test_accumulation_makes_up_the_batch() -> None:
    config = TrainConfig.model_validate(tree())
    # 1024 tokens = 16 sequences of 64; two ranks of 4 sequences each need two turns
    assert config.samples_per_step == 16
    assert config.accumulation_steps(world_size=2) == 2
    assert config.accumulation_steps(world_size=4) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer__betas": [0.9, 1.0]}, "betas: got 1.0, wanted two numbers from 0 to below 1"),
        ({"schedule__name": "cosine"}, "decay_steps=20 means nothing to cosine"),
        (
            {"zero": {"stage": 0}},
            "stage=0 is not supported: DeepSpeed trains bfloat16 without ZeRO only with sums in bfloat16; use 1",
        ),
        ({"zero": {"stage": 4}}, "stage=4: there are stages 1, 2 and 3"),
        (
            {"zero": {"stage": 2}, "compile": "deepcompile"},
            "zero.stage=2 with compile=deepcompile has not been tried; use zero.stage=3",
        ),
        ({"data__sources": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}, "the name 'a' stands 2 times"),
        ({"data__sources": []}, "at least 1 item"),
        ({"activation_checkpointing": "every_n_layers"}, "wants every_n_layers as well"),
        (
            {"activation_checkpointing": "full", "compile": "deepcompile"},
            "compile=deepcompile with activation_checkpointing=full is not known to work with ZeRO-3",
        ),
        (
            {"compile": "deepcompile", "precision": "bfloat16"},
            "zero.reduce_dtype=float32 with compile=deepcompile, which sums gradients over ranks in the parameters' "
            "bfloat16; set zero.reduce_dtype=bfloat16, or take compile=layers",
        ),
        (
            {"activation_checkpointing": {"mode": "every_n_layers", "every_n_layers": 99}},
            "activation_checkpointing.every_n_layers=99 is more than model.num_hidden_layers=",
        ),
    ],
)
def test_what_cannot_be_is_said(changes: dict[str, Any], words: str) -> None:
    assert words in message(**changes)


A, B = {"name": "a", "path": "x"}, {"name": "b", "path": "y"}


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"weights": {"a": 1, "bb": 1}}], "stages.0.weights names 'bb', which is no source; did you mean b?"),
        ([{"weights": {"a": 1}}], "stages.0.weights says nothing of source 'b'; give it a weight, 0 to leave it out"),
        ([{"weights": {"a": 0, "b": 0}}], "stages.0.weights are all 0; give a source more"),
        ([{"weights": {"a": -1, "b": 1}}], "greater than or equal to 0"),
        (
            [{"weights": {"a": 1, "b": 1}}, {"weights": {"a": 1, "b": 1}}],
            "stages.0 has no until_tokens, and only the last stage may be without end; say where it ends",
        ),
        (
            [{"until_tokens": 640, "weights": {"a": 1, "b": 1}}, {"until_tokens": 600, "weights": {"a": 1, "b": 1}}],
            "stages.1.until_tokens=600 is not a sequence of 64 tokens behind its beginning at 640; tokens are counted "
            "from the beginning of the run",
        ),
        (
            [{"until_tokens": 640, "weights": {"a": 1, "b": 1}}, {"until_tokens": 640, "weights": {"a": 1, "b": 1}}],
            "stages.1.until_tokens=640 is not a sequence",
        ),
        (
            [{"until_tokens": 6400, "weights": {"a": 1, "b": 1}}],
            "data.stages end at 6400 tokens but steps=100 of batch_tokens=1024 are 102400; leave until_tokens out of "
            "the last stage, or train at most 6 steps",
        ),
    ],
)
def test_stages_that_cannot_be_are_said(stages: list[dict[str, Any]], words: str) -> None:
    assert words in message(data__sources=[A, B], data__stages=stages)


def test_a_stage_ends_behind_its_last_whole_sequence() -> None:
    stages = [{"until_tokens": 641, "weights": {"a": 1, "b": 0}}, {"weights": {"a": 1, "b": 1}}]
    config = TrainConfig.model_validate(tree(data__sources=[A, B], data__stages=stages))
    assert config.data.stage_ends() == [11, None]


def test_stages_survive_being_written_and_read(tmp_path: Path) -> None:
    config = load(RECIPES / "smollm2-1.7b.yaml", TrainConfig)
    file = tmp_path / "resolved.yaml"
    file.write_text(dump(config))
    assert load(file, TrainConfig) == config
    changed = load(
        file, TrainConfig, ["data.stages.1.until_tokens=7_000_000_000_000", "data.stages.0.weights.finemath=1"]
    )
    assert changed.data.stages[1].until_tokens == 7 * 10**12
    assert changed.data.stages[0].weights["finemath"] == 1


def test_the_published_stages_of_the_largest_model() -> None:
    data = load(RECIPES / "smollm2-1.7b.yaml", TrainConfig).data
    shares = [
        [
            sum(stage.weights[name] for name in group)
            for group in (("fineweb-edu", "dclm"), ("stack-edu",), ("finemath",), ("cosmopedia",))
        ]
        for stage in data.stages
    ]
    assert shares == [[90, 10, 0, 0], [75, 20, 5, 0], [74, 16, 10, 0], [58, 24, 14, 4]]
    assert [stage.until_tokens for stage in data.stages] == [6 * 10**12, 8 * 10**12, 10**13, 11 * 10**12]


def test_a_dataset_in_a_store_keeps_its_address_and_wants_a_cache(tmp_path: Path) -> None:
    remote = {"name": "a", "path": "s3://bucket/a"}
    words = (
        "sources: a is read from s3://bucket/a and there is no data.cache_dir to copy its shards to; name a folder on "
        "a local disk"
    )
    assert words in message(data__sources=[remote])
    config = TrainConfig.model_validate(tree(data__sources=[remote, B], data__cache_dir="cache"))
    assert [source.path for source in config.data.sources] == ["s3://bucket/a", Path("y")]
    assert "s3://bucket/a" in dump(config)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert "got 7, wanted a folder or a URL" in message(data__sources=[{"name": "a", "path": 7}])


def test_flatten_names_every_leaf() -> None:
    assert flatten({"a": {"b": 1}, "c": [{"d": None}, 2], "e": []}) == {"a.b": 1, "c.0.d": None, "c.1": 2, "e": []}


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_recipe_loads_and_survives_being_written_back(recipe: Path, tmp_path: Path) -> None:
    config = load(recipe, TrainConfig)
    written = tmp_path / "config.yaml"
    written.write_text(dump(config))
    assert load(written, TrainConfig) == config


@pytest.mark.parametrize(
    ("name", "learning_rate", "batch_tokens", "steps", "decay_steps"),
    [
        ("smollm2-135m", 3e-3, 1_048_576, 2_000_000, 400_000),
        ("smollm2-360m", 3e-3, 1_572_864, 2_600_000, 520_000),
        ("smollm2-1.7b", 5e-4, 2_097_152, 5_240_000, 524_000),
    ],
)
def test_recipe_is_the_published_one(
    name: str, learning_rate: float, batch_tokens: int, steps: int, decay_steps: int
) -> None:
    config = load(RECIPES / f"{name}.yaml", TrainConfig)
    assert config.optimizer.learning_rate == learning_rate
    assert (config.batch_tokens, config.steps) == (batch_tokens, steps)
    assert (config.schedule.warmup_steps, config.schedule.decay_steps) == (2000, decay_steps)
    assert (config.optimizer.betas, config.optimizer.eps, config.optimizer.weight_decay) == ((0.9, 0.95), 1e-8, 0.01)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("smollm2-*.yaml")), ids=lambda file: file.stem)
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_recipe_divides_over_nodes_of_eight(recipe: Path, nodes: int) -> None:
    assert load(recipe, TrainConfig).accumulation_steps(world_size=8 * nodes) >= 1


def test_schedules_that_the_config_takes_are_the_table() -> None:
    assert get_args(ScheduleConfig.model_fields["name"].annotation) == tuple(SCHEDULES)


def test_attention_kernels_that_the_config_takes_are_the_table() -> None:
    assert set(get_args(AttentionImplementation)) == set(NAMES)


def test_losses_that_the_config_takes_are_the_table() -> None:
    assert get_args(TrainConfig.model_fields["loss_implementation"].annotation) == loss_selection.NAMES


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown key optimizer\.learning_rat; did you mean learning_rate\?"):
        load(RECIPES / "demo.yaml", TrainConfig, ["optimizer.learning_rat=1"])
