"""The loader: types decide what text means, and each mistake is one line with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from configs.load import ConfigError, dump, load


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Optimizer(Strict):
    name: str = "adamw"
    learning_rate: float = Field(default=3e-3, gt=0)
    warmup_steps: int = 2000
    fused: bool = True

    @model_validator(mode="after")
    def _muon_has_no_warmup(self) -> Optimizer:
        if self.name == "muon" and self.warmup_steps:
            raise ValueError("name=muon wants warmup_steps=0")
        return self


class Files(Strict):
    type: Literal["files"]
    path: str


class Hub(Strict):
    type: Literal["hub"]
    repository: str


class Recomputation(Strict):
    SHORTHAND: ClassVar[str] = "mode"
    mode: Literal["none", "full"] = "none"
    layers: int = 1


class Layers(Strict):
    recomputation: Recomputation = Recomputation()


class Training(Strict):
    steps: int = 10
    label: str | None = None
    optimizer: Optimizer = Optimizer()
    spare: Optimizer | None = None
    sources: tuple[Annotated[Files | Hub, Field(discriminator="type")], ...] = ()
    weights: dict[str, float] = {}
    optimizers: tuple[Optimizer, ...] = Field(default=(Optimizer(),), min_length=1)

    @model_validator(mode="after")
    def _warmup_fits(self) -> Training:
        if self.steps > 1_000_000:
            raise ValueError("steps=… is more than a million; use 1_000_000")
        return self


@pytest.fixture
def write(tmp_path: Path):
    def write_file(text: str, name: str = "train.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, Training, overrides)
    return str(caught.value)


def test_exponent_without_a_point_is_a_float(write) -> None:
    assert load(write("optimizer: {learning_rate: 1e-3}"), Training).optimizer.learning_rate == 0.001


def test_no_is_text_where_text_is_wanted_and_false_where_a_switch_is(write) -> None:
    optimizer = load(write("optimizer: {name: no, fused: no}"), Training).optimizer
    assert (optimizer.name, optimizer.fused) == ("no", False)


def test_underscores_group_digits(write) -> None:
    assert load(write("steps: 100_000"), Training).steps == 100_000


def test_null_is_none_and_quoted_null_is_text(write) -> None:
    assert load(write("label: null"), Training).label is None
    assert load(write("label: 'null'"), Training).label == "null"


@pytest.mark.parametrize("text", ["label:", "label: # later", "optimizer:\n  name:\n", "optimizer: {name: }"])
def test_a_key_without_a_value_is_refused(write, text: str) -> None:
    key = "label" if "label" in text else "name"
    with pytest.raises(ConfigError, match=rf":\d+:\d+: {key} is empty; give it a value .* or remove the line$"):
        load(write(text), Training)
    with pytest.raises(ConfigError, match=r"^override 'optimizer=\{name: \}':1:2: name is empty; "):
        load(write(""), Training, ["optimizer={name: }"])


def test_an_empty_file_gives_the_defaults(write) -> None:
    assert load(write(""), Training) == Training()


def test_a_mapping_may_be_the_path_of_a_file_relative_to_the_naming_file(write, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    write("learning_rate: 5e-4", "parts/slow.yaml")
    training = load(write("optimizer: parts/slow.yaml\nspare: parts/slow.yaml"), Training)
    assert training.optimizer.learning_rate == 5e-4
    assert training.spare == training.optimizer


def test_text_is_the_shorthand_field_of_a_model_that_has_one(write) -> None:
    full = Recomputation(mode="full")
    assert load(write("recomputation: full"), Layers).recomputation == full
    assert load(write(""), Layers, ["recomputation=full"]).recomputation == full
    assert load(write("recomputation: {mode: full}"), Layers).recomputation == full


def test_an_override_reaches_into_a_model_given_by_its_shorthand(write) -> None:
    file = write("recomputation: full")
    assert load(file, Layers, ["recomputation.layers=3"]).recomputation == Recomputation(mode="full", layers=3)
    with pytest.raises(ConfigError, match=r"recomputation.mode=half: input should be 'none' or 'full'"):
        load(file, Layers, ["recomputation=half"])


def test_overrides_win_in_order(write) -> None:
    training = load(write("steps: 5"), Training, ["steps=6", "steps=7", "optimizer.learning_rate=1e-2"])
    assert (training.steps, training.optimizer.learning_rate) == (7, 0.01)


@pytest.mark.parametrize("value", ["runs/exp #2", "#2", "runs/exp#2", "a # b"])
def test_an_overrides_text_is_not_cut_at_a_comment(write, value: str) -> None:
    assert load(write(""), Training, [f"label={value}"]).label == value


@pytest.mark.parametrize("value", ["'exp #2'", '"exp #2"'])
def test_a_quoted_override_is_yaml(write, value: str) -> None:
    assert load(write(""), Training, [f"label={value}"]).label == "exp #2"


def test_a_bracketed_override_is_yaml(write) -> None:
    path = write("")
    assert load(path, Training, ["weights={code: 1} # half"]).weights == {"code": 1}
    assert load(path, Training, ["sources=[{type: files, path: a}] # one"]).sources == (Files(type="files", path="a"),)


def test_an_empty_or_null_override_is_none(write) -> None:
    path = write("label: a")
    assert [load(path, Training, [override]).label for override in ("label=", "label=null")] == [None, None]


def test_an_override_reaches_into_a_referenced_file(write) -> None:
    write("learning_rate: 5e-4", "slow.yaml")
    training = load(write("optimizer: slow.yaml"), Training, ["optimizer.warmup_steps=3"])
    assert (training.optimizer.learning_rate, training.optimizer.warmup_steps) == (5e-4, 3)


def test_overrides_reach_list_items_and_free_keys(write) -> None:
    path = write("sources: [{type: files, path: a}]")
    training = load(path, Training, ["sources.0.path=b", "weights.code=0.5", "label=a=b"])
    assert training.sources == (Files(type="files", path="b"),)
    assert training.weights == {"code": 0.5}
    assert training.label == "a=b"


def test_dump_reads_back_equal(write) -> None:
    training = load(write("label: 'no'\nsources: [{type: hub, repository: x}]\nweights: {a: 1e-9}"), Training)
    assert load(write(dump(training), "again.yaml"), Training) == training


def test_unknown_key_names_the_nearest(write) -> None:
    path = write("optimizer: {learning_rat: 1}")
    assert error_of(path) == f"{path}: unknown key optimizer.learning_rat; did you mean learning_rate?"


def test_unknown_key_without_a_near_one_lists_the_known(write) -> None:
    assert error_of(write("optimizer: {xyzzy: 1}")).endswith("known: name, learning_rate, warmup_steps, fused")


def test_unknown_key_inside_a_union_member_names_the_nearest(write) -> None:
    path = write("sources: [{type: files, pth: a, path: b}]")
    assert error_of(path) == f"{path}: unknown key sources.0.pth; did you mean path?"


@pytest.mark.parametrize(("kind", "hint"), [("file", "did you mean files?"), ("s3", "known: files, hub")])
def test_an_unknown_kind_of_section_names_the_nearest(write, kind: str, hint: str) -> None:
    path = write(f"sources: [{{type: {kind}, path: b}}]")
    assert error_of(path) == f"{path}: sources.0: unknown type={kind}; {hint}"


def test_a_section_without_its_kind_is_told_so(write) -> None:
    path = write("sources: [{path: b}]")
    assert error_of(path) == f"{path}: sources.0.type is missing; it says what kind this is, and has no default"


def test_a_list_is_not_too_short_because_its_item_is_wrong(write) -> None:
    path = write("optimizers: [{learning_rate: -1}]")
    assert error_of(path) == f"{path}: optimizers.0.learning_rate=-1: input should be greater than 0"
    assert "at least 1 item" in error_of(write("optimizers: []"))


def test_a_problem_is_told_of_where_the_value_was_written(write) -> None:
    path = write("steps: x\nsources: [{type: files, path: a}]\noptimizer: {fused: perhaps}")
    of_overrides = ["optimizer.learning_rate=fast", "sources.0.type=file", "spare={fused: perhaps}"]
    assert error_of(path, *of_overrides).splitlines() == [
        f"{path}: steps=x: input should be a valid integer, unable to parse string as an integer",
        "override 'optimizer.learning_rate=fast': optimizer.learning_rate=fast: "
        "input should be a valid number, unable to parse string as a number",
        f"{path}: optimizer.fused=perhaps: input should be a valid boolean, unable to interpret input",
        "override 'spare={fused: perhaps}': spare.fused=perhaps: "
        "input should be a valid boolean, unable to interpret input",
        "override 'sources.0.type=file': sources.0: unknown type=file; did you mean files?",
    ]


def test_fields_that_do_not_fit_each_other_may_be_of_the_file_and_of_overrides(write) -> None:
    path = write("")
    too_many = "steps=… is more than a million; use 1_000_000"
    assert error_of(path, "steps=2_000_000") == f"{path} with its overrides: {too_many}"
    assert error_of(write("steps: 2_000_000")) == f"{path}: {too_many}"
    unfit = "optimizer: name=muon wants warmup_steps=0"
    assert error_of(write("optimizer: {name: muon}"), "steps=5") == f"{path}: {unfit}"
    assert error_of(write(""), "optimizer.name=muon") == f"{path} with its overrides: {unfit}"


def test_a_path_in_a_union_is_the_one_that_stands_in_the_file(write) -> None:
    path = write("sources: [{type: hub}, {type: files, path: [a]}]")
    assert error_of(path).splitlines() == [
        f"{path}: sources.0.repository is missing; it has no default",
        f'{path}: sources.1.path=["a"]: input should be a valid string',
    ]


def test_unknown_key_that_is_the_name_of_a_nested_field_says_where_that_is(write) -> None:
    path = write("fused: true")
    meant = "did you mean optimizer.fused or spare.fused?"
    assert error_of(path) == f"{path}: unknown key fused; {meant}"
    assert error_of(write(""), "fused=true") == f"override 'fused=true': unknown key fused; {meant}"
    assert error_of(write(""), "optim.fused=true") == f"override 'optim.fused=true': unknown key optim; {meant}"
    with pytest.raises(ConfigError, match=r"unknown key mode; did you mean recomputation\.mode\?"):
        load(write(""), Layers, ["mode=full"])


def test_unknown_key_that_is_the_name_of_a_field_further_out_says_so(write) -> None:
    path = write("optimizer: {steps: 3}")
    assert error_of(path) == f"{path}: unknown key optimizer.steps; did you mean steps?"
    assert error_of(write(""), "optim.steps=3").endswith("unknown key optim; did you mean optimizer?")
    override = "optimizer.steps=3"
    assert error_of(write(""), override) == f"override '{override}': unknown key {override[:-2]}; did you mean steps?"


def test_unknown_override_names_itself(write) -> None:
    message = error_of(write(""), "optimizer.learnin_rate=1")
    assert message == (
        "override 'optimizer.learnin_rate=1': unknown key optimizer.learnin_rate; did you mean learning_rate?"
    )


def test_wrong_type_shows_what_came(write) -> None:
    assert "optimizer.learning_rate=fast: input should be a valid number" in error_of(
        write("optimizer: {learning_rate: fast}")
    )


def test_file_of_another_kind_is_one_line(write) -> None:
    message = error_of(write("name: a\nfiles: b\nfilters: c\nsteps: 1\n"))
    assert "is a config of another kind: 3 of its 4 keys are unknown here (name, files, filters, …)" in message
    assert message.endswith("wanted steps, label, optimizer, spare, sources, weights, optimizers, …")


def test_wrong_type_is_told_in_yamls_words(write) -> None:
    assert error_of(write("sources: everything")).endswith(
        "sources=everything: input should be a list, written [one, two]"
    )


def test_null_where_a_value_is_wanted_is_told_as_such(write) -> None:
    path = write("optimizer: null\nsources: {}")
    assert error_of(path).splitlines() == [
        f"{path}: optimizer is empty; give it a value, or remove the line",
        f"{path}: sources={{}}: input should be a list, written [one, two]",
    ]
    assert error_of(write("optimizer: []")).endswith("optimizer=[]: input should be a mapping")


def test_a_whole_number_with_an_exponent_is_told_how_to_be_written(write) -> None:
    assert error_of(write("steps: 2e6")).endswith("; write 2_000_000")


def test_out_of_range_says_the_bound(write) -> None:
    assert error_of(write(""), "optimizer.learning_rate=-1").endswith(
        "optimizer.learning_rate=-1: input should be greater than 0"
    )


def test_a_rule_over_several_fields_keeps_its_own_words(write) -> None:
    path = write("steps: 2_000_000")
    assert error_of(path) == f"{path}: steps=… is more than a million; use 1_000_000"


def test_every_problem_is_told_at_once(write) -> None:
    assert len(error_of(write("steps: x\nlabels: y\noptimizer: {fused: perhaps}")).splitlines()) == 3


def test_missing_file_names_the_nearest(write, tmp_path: Path) -> None:
    write("", "train.yaml")
    assert error_of(tmp_path / "tran.yaml").endswith(f"no such file; did you mean {tmp_path / 'train.yaml'}?")


def test_missing_folder_is_said(tmp_path: Path) -> None:
    assert "nor is there a folder" in error_of(tmp_path / "none" / "train.yaml")


def test_a_folder_is_not_a_config(tmp_path: Path) -> None:
    assert error_of(tmp_path) == f"{tmp_path} is a folder; name a YAML file in it"


def test_a_missing_referenced_file_is_named(write, tmp_path: Path) -> None:
    assert error_of(write("optimizer: none.yaml")).startswith(f"{tmp_path / 'none.yaml'}: no such file")


def test_malformed_yaml_says_where(write) -> None:
    path = write("steps: 1\noptimizer: {fused: [")
    assert error_of(path).startswith(f"{path}:2:")


def test_a_key_that_stands_twice_is_refused(write) -> None:
    assert "key 'steps' stands twice" in error_of(write("steps: 1\nsteps: 2"))


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_bytes(b"steps: \xff")
    assert "not UTF-8 text (byte 7)" in error_of(path)


def test_a_list_at_the_top_is_refused(write) -> None:
    assert "got a list at the top" in error_of(write("- steps"))


@pytest.mark.parametrize("override", ["steps", "=1", "optimizer..fused=1"])
def test_an_override_that_is_none_is_refused(write, override: str) -> None:
    assert error_of(write(""), override) == f"override {override!r}: wanted dotted.key=value"


def test_an_override_beyond_a_list_is_refused(write) -> None:
    path = write("sources: [{type: files, path: a}]")
    assert "wanted an index from 0 to 0" in error_of(path, "sources.1.path=b")


def test_an_override_below_a_number_is_refused(write) -> None:
    assert "weights.code is text, it has no keys" in error_of(write("weights: {code: 1}"), "weights.code.deep=1")
