"""HTML and SVG elements that are safe by construction: whatever is not `Markup` is escaped on its way in."""

from __future__ import annotations

import html
from collections.abc import Sequence


class Markup(str):
    """Text that is HTML already. Only `element` and `join` make it of other text."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: object) -> Markup:
    """`<name attributes>children</name>`; `class_` is class, `font_size` is font-size, None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Sequence[str]) -> Markup:
    """One after the other, each escaped unless it is Markup."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(visible(child)) for child in children))


def visible(text: str) -> str:
    """Line ends as ↵, and what does not print (controls, marks that turn the direction of text) as its escape."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else "↵"
        if character == "\n"
        else character.encode("unicode_escape").decode()
        for character in text
    )
