"""What pydantic found wrong in a config, one line a problem: where it was written, what, got, wanted, fix."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from configs.schema import model_at, paths_to, written_path


def describe(item: ErrorDetails, schema: type[BaseModel], file: Path, overrides: list[str]) -> str:
    path = written_path(schema, item["loc"])
    origin = _origin(path, file, overrides)
    kind, got = item["type"], item["input"]
    if kind == "extra_forbidden":
        key = str(item["loc"][-1])
        inside = list(paths_to(key, schema))
        return unknown_key(path, key, model_at(schema, item["loc"][:-1]), origin, inside=inside)
    if kind == "missing":
        return f"{origin}: {path} is missing; it has no default"
    if kind == "union_tag_not_found":
        tag = item["ctx"]["discriminator"].strip("'")
        return f"{origin}: {path}.{tag} is missing; it says what kind this is, and has no default"
    if kind == "union_tag_invalid":
        tag = item["ctx"]["discriminator"].strip("'")
        return f"{_origin(f'{path}.{tag}', file, overrides)}: {path}: {_unknown_tag(tag, item['ctx'])}"
    reason = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    # what YAML calls them
    reason = reason.replace("a valid tuple", "a list, written [one, two]").replace("a valid dictionary", "a mapping")
    reason = re.sub(r" or instance of \w+", "", reason)
    if kind in ("value_error", "assertion_error"):
        # of fields that do not fit each other
        if any(not path or key.startswith(f"{path}.") for key in map(_key, overrides)):
            origin = f"{file} with its overrides"
        return f"{origin}: {path}: {reason}" if path else f"{origin}: {reason}"
    if got is None:
        return f"{origin}: {path} is empty; give it a value, or remove the line"
    return f"{origin}: {path}={_shown(got)}: {reason[0].lower()}{reason[1:]}{_number_hint(kind, got)}"


def unknown_key(path: str, key: str, model: type[BaseModel] | None, origin: str, *, inside: list[str]) -> str:
    """`inside` are the fields of that very name elsewhere in the schema: likelier meant than one spelt alike here."""
    known = list(model.model_fields) if model else []
    nearest = inside[:3] or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if nearest:
        hint = f"did you mean {' or '.join(nearest)}?"
    else:
        hint = f"known: {', '.join(known)}" if known else "remove it"
    return f"{origin}: unknown key {path}; {hint}"


def _origin(path: str, file: Path, overrides: list[str]) -> str:
    """Where the value at `path` was written: the last override of it or of what it is in, or else the file."""
    for override in reversed(overrides):
        key = _key(override)
        if path == key or path.startswith(f"{key}."):
            return f"override {override!r}"
    return str(file)


def _key(override: str) -> str:
    return override.partition("=")[0]


def _unknown_tag(field: str, context: dict[str, Any]) -> str:
    """Of a section that comes in kinds, told apart by that field of it."""
    known = re.findall("'([^']*)'", context["expected_tags"])
    nearest = difflib.get_close_matches(context["tag"], known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown {field}={context['tag']}; {hint}"


def _number_hint(kind: str, got: Any) -> str:
    if kind != "int_parsing" or not isinstance(got, str):
        return ""
    try:
        number = float(got)
    except ValueError:
        return ""
    return f"; write {int(number):_}" if number.is_integer() else "; write a whole number"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
