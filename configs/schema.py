"""What a pydantic schema has at a path: the model there, and the path as its user writes it. Reads no file."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

Location = tuple[int | str, ...]


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The one pydantic model of `Model` or `Model | None`; None for every other type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return model_in(members[0])
    return None


def item_type(annotation: Any) -> Any:
    """The element type of a list, tuple or mapping; Any where the schema does not say."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (dict, Mapping) and len(arguments) == 2:
        return arguments[1]
    return arguments[0] if arguments else Any


def model_at(schema: type[BaseModel], location: Location) -> type[BaseModel] | None:
    annotation: Any = schema
    for part in location:
        model = model_in(annotation)
        if model is None:
            annotation = _tagged_member(annotation, part) or item_type(annotation)
        elif part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
        else:
            return None
    return model_in(annotation)


def _tagged_member(annotation: Any, tag: int | str) -> type[BaseModel] | None:
    """The model of a discriminated union whose Literal field holds `tag`."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    for member in typing.get_args(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            for field in member.model_fields.values():
                if typing.get_origin(field.annotation) is typing.Literal and tag in typing.get_args(field.annotation):
                    return member
    return None


def written_path(schema: type[BaseModel], location: Location) -> str:
    """Dotted, as it stands in a file: without the tags of discriminated unions that pydantic puts between."""
    annotation: Any = schema
    written: list[str] = []
    for part in location:
        model = model_in(annotation)
        if model is not None:
            field = model.model_fields.get(str(part))
            annotation = Any if field is None else field.annotation
        elif (member := _tagged_member(annotation, part)) is not None:
            annotation = member
            continue
        else:
            annotation = item_type(annotation)
        written.append(str(part))
    return ".".join(written)


def paths_to(name: str, schema: type[BaseModel], *, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The dotted paths of all fields of that name in a schema and inside its models; not in lists."""
    for key, field in schema.model_fields.items():
        model = model_in(field.annotation)
        if model is None or key in above:
            continue
        yield from paths_to(name, model, above=(*above, key))
    if name in schema.model_fields:
        yield ".".join((*above, name))
