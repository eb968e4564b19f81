from __future__ import annotations

import pytest

from pipeline.filter_config import UnicodeConfig
from pipeline.filters.unicode import rejection
from pipeline.filters.view import DocumentView


def mended(text: str, **fields: object) -> str:
    view = DocumentView(text)
    assert rejection(view, UnicodeConfig.model_validate({"type": "unicode"} | fields)) is None
    return view.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafÃ©", "café"),
        ("itâ€™s", "it\u2019s"),
        ("\u201cquoted\u201d ﬁne \uff21", "\u201cquoted\u201d ﬁne \uff21"),
        ("a\r\nb", "a\nb"),
        ("plain", "plain"),
        ("e\u0301", "e\u0301"),
    ],
)
def test_wrong_encodings_are_mended_and_nothing_else(text: str, expected: str) -> None:
    assert mended(text) == expected


def test_composition_is_a_choice() -> None:
    assert mended("e\u0301", normalization="NFC") == "\u00e9"
    assert mended("cafÃ© e\u0301", normalization="NFC", repair=False) == "cafÃ© \u00e9"
    assert mended("cafÃ© e\u0301", repair=False) == "cafÃ© e\u0301"
