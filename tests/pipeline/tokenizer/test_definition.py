from __future__ import annotations

import gc
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.tokenizer import definition as definition_module
from pipeline.tokenizer.definition import Definition, definition_at, load_definition
from pipeline.tokenizer.encode import Encoder, load_ahead
from pipeline.tokenizer.parity import hard_cases
from pipeline.tokenizer.special_tokens import EOS_TOKEN, SPECIAL_TOKENS
from pipeline.tokenizer.train import TokenizerError


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    definition_module._loaded.clear()
    yield
    definition_module._loaded.clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def definition_of_parts(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Definition:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        definition = known(tokenizer_file.read_bytes())
        assert is_of_parts(definition)
    return definition


def merges_as_texts(tree: dict[str, Any]) -> None:
    tree["model"]["merges"] = [" ".join(merge) for merge in tree["model"]["merges"]]


def edited(path: Path, **model: object) -> bytes:
    tree = json.loads(path.read_bytes())
    tree["model"] |= model
    return json.dumps(tree).encode()


def known(content: bytes) -> Definition:
    """A definition that has been loaded by the library once, in another process or run."""
    _ = Definition(content, origin="tokenizer.json").vocabulary
    return Definition(content, origin="tokenizer.json")


def ids_of_the_library(content: bytes, texts: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_str(content.decode())
    tokenizer.encode_special_tokens = True
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def is_of_parts(definition: Definition) -> bool:
    _ = definition.reference
    return "tokenizer" not in vars(definition)


def ids_of(definition: Definition, texts: list[str]) -> list[list[int]]:
    flat = definition.reference.encode(texts)
    return [flat.row(index).tolist() for index in range(len(texts))]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("are_texts", [False, True])
def test_a_reference_of_parts_gives_the_library_s_ids_on_the_hard_cases(tokenizer_file: Path, are_texts: bool) -> None:
    tree = json.loads(tokenizer_file.read_bytes())
    if are_texts:
        merges_as_texts(tree)
    content = json.dumps(tree).encode()
    texts = [*hard_cases(SPECIAL_TOKENS, long_characters=20_000), f"a{EOS_TOKEN}b<filename>"]
    definition = known(content)
    assert ids_of(definition, texts) == ids_of_the_library(content, texts)
    assert is_of_parts(definition)


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text(max_size=60) | st.sampled_from([EOS_TOKEN, "<filename>", "  \n"]), min_size=1, max_size=4)
)
def test_a_reference_of_parts_gives_the_library_s_ids_on_any_text(
    tokenizer_file: Path, definition_of_parts: Definition, texts: list[str]
) -> None:
    assert ids_of(definition_of_parts, texts) == ids_of_the_library(tokenizer_file.read_bytes(), texts)


@pytest.mark.usefixtures("cache")
def test_what_the_library_has_loaded_once_it_need_not_load_to_be_described(tokenizer_file: Path) -> None:
    content = tokenizer_file.read_bytes()
    first = Definition(content, origin="a.json")
    vocabulary = first.vocabulary
    assert "tokenizer" in vars(first)
    second = Definition(content, origin="a.json")
    assert second.vocabulary == vocabulary
    assert "tokenizer" not in vars(second)


@pytest.mark.usefixtures("cache")
def test_of_parts_that_make_another_tokenizer_none_is_made(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a version of the library took the parts otherwise than a file."""
    of_parts = definition_module._of_parts

    def without_the_last_merge(tree: dict[str, Any]) -> Tokenizer:
        model = tree["model"] | {"merges": tree["model"]["merges"][:-1]}
        return of_parts(tree | {"model": model})

    monkeypatch.setattr(definition_module, "_of_parts", without_the_last_merge)
    content = tokenizer_file.read_bytes()
    definition = known(content)
    texts = ["the shard the shard", "return 東京"]
    assert ids_of(definition, texts) == ids_of_the_library(content, texts)
    assert "tokenizer" in vars(definition)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("model", "of_parts"),
    [
        ({"fuse_unk": True}, True),
        ({"unk_token": "<|endoftext|>"}, True),
        ({"ignore_merges": True}, True),
        ({"byte_fallback": True}, True),
        ({"dropout": 0.0}, False),
        ({"another_key": 1}, False),
    ],
)
def test_an_unusual_model_is_the_library_s_too(
    tokenizer_file: Path, model: dict[str, Any], of_parts: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    content = edited(tokenizer_file, **model)
    assert is_of_parts(known(content)) == of_parts
    assert capfd.readouterr().out == ""  # where the library tells of options that it ignores
    texts = ["the shard <|endoftext|>\x04 12", "return 東京"]
    assert ids_of(known(content), texts) == ids_of_the_library(content, texts)


def test_pickled_it_is_told_where_its_file_lies(tokenizer_file: Path) -> None:
    definition = Definition(tokenizer_file.read_bytes(), origin="a.json", path=tokenizer_file)
    pickled = pickle.dumps(definition)
    assert len(pickled) < 1000
    other = pickle.loads(pickled)
    assert (other.digest, other.origin, other.tree) == (definition.digest, "a.json", definition.tree)
    without_file = pickle.loads(pickle.dumps(Definition(tokenizer_file.read_bytes(), origin="a.json")))
    assert (without_file.digest, without_file.origin) == (definition.digest, "a.json")


def test_what_was_loaded_ahead_is_taken(tokenizer_file: Path) -> None:
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token=EOS_TOKEN, path=Path("/nowhere/tokenizer.json"))
    load_ahead(tokenizer_file, wanted="auto")
    ahead = load_definition_of(tokenizer_file)
    assert {"reference", "splintr"} <= set(vars(ahead))
    theirs = pickle.loads(pickle.dumps(encoder))
    theirs.use("splintr")
    assert theirs._fast is ahead.splintr
    assert theirs.encode(["the shard"])[0].tolist() == encoder.encode(["the shard"])[0].tolist()


def load_definition_of(path: Path) -> Definition:
    return definition_module._loaded[Definition(path.read_bytes(), origin="").digest]


def test_only_the_reference_is_loaded_ahead_where_no_other_may_stand_in(tokenizer_file: Path, tmp_path: Path) -> None:
    load_ahead(tokenizer_file, wanted="tokenizers")
    assert "splintr" not in vars(load_definition_of(tokenizer_file))
    unusual = tmp_path / "tokenizer.json"
    unusual.write_bytes(edited(tokenizer_file, byte_fallback=True))
    load_ahead(unusual, wanted="auto")
    assert {"splintr", "reference"} & set(vars(load_definition_of(unusual))) == {"reference"}


def test_a_file_that_has_changed_since_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_file.read_bytes())
    definition = Definition(path.read_bytes(), origin="a.json", path=path)
    load_definition(path)
    assert definition_at(path, definition.digest, "a.json", "leave it").digest == definition.digest
    path.write_bytes(b"{}")
    definition_module._loaded.clear()
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json is not what the run .* share; if it was changed, leave it$"
    ):
        definition_at(path, definition.digest, "a.json", "leave it")
    path.unlink()
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json: No such file or .* share, or run the same command again$"
    ):
        definition_at(path, definition.digest, "a.json", "leave it")


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_collector_is_left_as_it_was(tokenizer_file: Path, is_enabled: bool) -> None:
    was_enabled = gc.isenabled()
    (gc.enable if is_enabled else gc.disable)()
    try:
        _ = Definition(tokenizer_file.read_bytes(), origin="a.json").tree
        assert gc.isenabled() == is_enabled
        with pytest.raises(ValueError, match="unexpected end of data"):
            _ = Definition(b"{", origin="a.json").tree
        assert gc.isenabled() == is_enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
