r"""A text cut into words, once, for every filter and for MinHash. The rule is part of their definitions: it stays.

Cut at white space; then:

- a run of letters and digits is a word. ASCII marks with no space around tie two runs to one word (`os.path`,
  `snake_case`, `x==y`, `std::map`, `"a","b`), but not a single comma, colon, slash, equals sign, double quote, angle
  bracket or hyphen, nor a dash of hyphens. Beside digits these tie too: comma and colon between two, slash and equals
  sign before or behind one, a hyphen before one and not behind one (`1,000`, `12:30`, `1/n`, `n=1`, `utf-8`);
- an apostrophe after a letter begins a word of its own (`John` `'s`, `don` `'t`);
- `-`, `+`, `/`, `.`, `@`, `~` and `\` in front of a word belong to it (`--help`, `/usr`, `.5`), after white space or
  one of ``( [ " ' ` ``;
- an address that begins with `http://`, `https://`, `ftp://` or `file://` is one word;
- of scripts that put no space between words (Han, Kana, Thai, Lao, Khmer, Burmese) every character is a word;
- whatever is left is a mark: each a word of its own, but for runs of `-`, `.`, `~`, `^` and `|`, which are one.

Letters are what Python calls alphanumeric, and combining marks; beyond the basic plane all but pictographs.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_BEYOND_BASIC_PLANE = "\U00010000-\U0001efff"


def _letters() -> str:
    """A character class of the basic plane's letters, digits and combining marks, less those of unspaced scripts."""
    unspaced = re.compile(f"[{_UNSPACED}]")
    wanted = [
        code
        for code in range(0x10000)
        if (chr(code).isalnum() or unicodedata.category(chr(code)).startswith("M")) and not unspaced.match(chr(code))
    ]
    starts = [code for code, before in zip(wanted, [-1, *wanted], strict=False) if code != before + 1]
    ends = [code for code, after in zip(wanted, [*wanted[1:], -1], strict=True) if after != code + 1]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


_MARK = r"[.@&+*#|\[\](){}=;!?$%^~`\\_,:/<>\"'-]"
_TIE = rf"""(?:
    [.@&+*#|\[\](){{}};!?$%^~`\\_]
    | (?!--){_MARK}{{2,}}+
    | (?<=[0-9])[,:](?=[0-9])
    | [/=](?=[0-9]) | (?<=[0-9])[/=]
    | (?<![0-9])-(?=[0-9])
)"""


@cache
def _word() -> re.Pattern[str]:
    """Made when first asked for: to look at all of the basic plane takes 40 ms."""
    letter = f"[{_letters()}{_BEYOND_BASIC_PLANE}]"
    # most words end at white space: to ask for that first is a third faster
    tied = rf"{letter}++ (?:(?!\s){_TIE}{letter}++)*+"
    return re.compile(
        rf"""
        (?:https?|ftp|file)://[^\s<>"]*[\w/]
        | {tied}
        | (?<![^\s(\["'`])[-+/.@~\\]+ {tied}
        | (?<={letter})['\u2019]{letter}+
        | [-.~^|]+
        | [{_UNSPACED}]
        | \S
        """,
        re.VERBOSE,
    )


def words(text: str) -> list[str]:
    """The words of a text in their order, marks of punctuation among them; nothing but white space is left out."""
    return _word().findall(text)
