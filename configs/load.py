"""YAML and `dotted.key=value` overrides into a frozen pydantic model, and back into YAML.

Contract: `load(path, Schema, overrides)` returns a validated `Schema` or raises `ConfigError`, whose message has
one line a problem: what, got, wanted, fix. Scalars stay text until the schema's types read them, so that `1e-3`
is a float where a float is wanted and `no` is text where text is wanted. A field whose type is a pydantic model
may be given as the path of a YAML file, relative to the file that names it; for a model with a `SHORTHAND`, the name
of one of its fields, text is that field's value instead.

Does not know any room's schema, and reads no environment variable.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.problems import describe, unknown_key
from configs.schema import item_type, model_in, paths_to

Schema = TypeVar("Schema", bound=BaseModel)
Tree = dict[str, Any]


class ConfigError(ValueError):
    """A configuration that cannot be used. The message has one line a problem, each with the way out."""


class _EmptyValueError(Exception):
    """A key without a value: YAML takes it for null, which of a section would mean that it is off."""

    def __init__(self, key: str, mark: yaml.Mark) -> None:
        super().__init__(f"{mark.line + 1}:{mark.column + 1}: {key} is empty")


class _TextLoader(yaml.BaseLoader):
    """YAML whose scalars all stay text, but for null; a key given twice, or without a value, is an error."""


def _construct_mapping(loader: _TextLoader, node: yaml.MappingNode) -> Tree:
    pairs: Tree = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, "a key that is not text", key_node.start_mark)
        if key in pairs:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
        if value_node.tag == _NULL_TAG and not value_node.value:
            raise _EmptyValueError(key, key_node.start_mark)
        pairs[key] = loader.construct_object(value_node, deep=True)
    return pairs


_NULL_TAG = "tag:yaml.org,2002:null"
_TextLoader.add_implicit_resolver(
    _NULL_TAG, yaml.resolver.Resolver.yaml_implicit_resolvers["~"][0][1], ["~", "n", "N", ""]
)
_TextLoader.add_constructor(_NULL_TAG, lambda loader, node: None)
_TextLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def load(path: str | Path, schema: type[Schema], overrides: Iterable[str] = ()) -> Schema:
    """Read `path`, apply the overrides in order, validate.

    Raises ConfigError for a missing or malformed file, an unknown key, a wrong type and a value out of range.
    """
    file = Path(path)
    tree = _resolve_references(_read_mapping(file), schema, folder=file.parent)
    overrides = list(overrides)
    for override in overrides:
        _apply_override(tree, override, schema)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        problems = _without_followers(error.errors())
        _check_kind(problems, tree, schema, file)
        raise ConfigError("\n".join(describe(item, schema, file, overrides) for item in problems)) from None


def dump(config: BaseModel) -> str:
    """The resolved configuration as YAML that `load` reads back to an equal model."""
    return yaml.safe_dump(
        json.loads(config.model_dump_json()),
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )


def _without_followers(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without lists that are too short only because their items, which have problems of their own, do not count."""
    return [
        item
        for item in problems
        if item["type"] != "too_short"
        or not any(
            len(other["loc"]) > len(item["loc"]) and other["loc"][: len(item["loc"])] == item["loc"]
            for other in problems
        )
    ]


def _check_kind(problems: list[ErrorDetails], tree: Tree, schema: type[BaseModel], file: Path) -> None:
    """One line instead of many for a file of another kind: most of its keys are unknown."""
    unknown = [str(item["loc"][0]) for item in problems if item["type"] == "extra_forbidden" and len(item["loc"]) == 1]
    if len(unknown) > 2 and 2 * len(unknown) > len(tree):
        raise ConfigError(
            f"{file} is a config of another kind: {len(unknown)} of its {len(tree)} keys are unknown here "
            f"({', '.join(unknown[:3])}, …); wanted {', '.join(list(schema.model_fields)[:8])}, …"
        )


def _read_mapping(file: Path) -> Tree:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file{_similar_file(file)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{file} is a folder; name a YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (byte {error.start}); wanted a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    tree = _parse(text, origin=str(file))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: got {_kind(tree)} at the top, wanted `key: value` lines")
    return tree


def _parse(text: str, *, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_TextLoader)
    except _EmptyValueError as error:
        fix = "give it a value ({} for a section of defaults, null for none), or remove the line"
        raise ConfigError(f"{origin}:{error}; {fix}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark else origin
        raise ConfigError(f"{where}: malformed YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: malformed YAML: {' '.join(str(error).split())}") from None


def _resolve_references(tree: Tree, schema: type[BaseModel], *, folder: Path) -> Tree:
    """Replace text by the YAML file it names, wherever the schema wants a model."""
    resolved: Tree = {}
    for key, value in tree.items():
        field = schema.model_fields.get(key)
        resolved[key] = value if field is None else _resolve_value(value, field.annotation, folder=folder)
    return resolved


def _resolve_value(value: Any, annotation: Any, *, folder: Path) -> Any:
    model = model_in(annotation)
    if model is None:
        return value
    if isinstance(value, str):
        if (shorthand := getattr(model, "SHORTHAND", None)) is not None:
            return {shorthand: value}
        file = folder / value
        return _resolve_references(_read_mapping(file), model, folder=file.parent)
    if isinstance(value, dict):
        return _resolve_references(value, model, folder=folder)
    return value


def _apply_override(tree: Tree, override: str, schema: type[BaseModel]) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {override!r}: wanted dotted.key=value")
    node: Any = tree
    annotation: Any = schema
    for depth, key in enumerate(keys):
        model = model_in(annotation)
        if model is not None:
            if key not in model.model_fields:
                # a top-level field of that name is not meant where a section is misspelt
                inside = [path for path in paths_to(keys[-1], schema) if "." in path or depth == len(keys) - 1]
                path = ".".join(keys[: depth + 1])
                raise ConfigError(unknown_key(path, key, model, f"override {override!r}", inside=inside))
            annotation = model.model_fields[key].annotation
        else:
            annotation = item_type(annotation)
        if depth < len(keys) - 1:
            node = _descend(node, key, ".".join(keys[: depth + 1]), override)
    value = _resolve_value(_parse_override(text, override), annotation, folder=Path())
    if isinstance(node, list):
        node[_list_index(node, keys[-1], dotted, override)] = value
    else:
        node[keys[-1]] = value


def _parse_override(text: str, override: str) -> Any:
    text = text.strip()
    # YAML would cut `run_dir=runs/exp #2` at a comment, which nobody writes on a command line: another run's folder
    if re.search(r"(^|\s)#", text) and not text.startswith(("[", "{", '"', "'")):
        return text
    return _parse(text, origin=f"override {override!r}")


def _descend(node: Any, key: str, dotted: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(node, key, dotted, override)]
    child = node.get(key)
    if child is None:
        child = node[key] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {override!r}: {dotted} is {_kind(child)}, it has no keys")
    return child


def _list_index(node: list[Any], key: str, dotted: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"override {override!r}: {dotted}: wanted an index from 0 to {len(node) - 1}")
    return int(key)


def _similar_file(file: Path) -> str:
    if not file.parent.is_dir():
        return f" (nor is there a folder {file.parent})"
    names = [entry.name for entry in file.parent.iterdir()]
    nearest = difflib.get_close_matches(file.name, names, n=1)
    return f"; did you mean {file.parent / nearest[0]}?" if nearest else ""


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names: dict[type, str] = {str: "text", list: "a list", dict: "a mapping"}
    return names.get(type(value), type(value).__name__)
