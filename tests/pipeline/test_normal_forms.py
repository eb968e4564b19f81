from __future__ import annotations

import time
import unicodedata
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.deduplication.normalization import comparable_bytes, comparable_words
from pipeline.filter_config import UnicodeConfig
from pipeline.filters.unicode import rejection
from pipeline.filters.view import DocumentView
from pipeline.normal_forms import NormalForm, _marks, normalized

FORMS: tuple[NormalForm, ...] = get_args(NormalForm)
# of several combining classes; U+0344, U+0F73 and U+FF9E decompose to marks, the last two without a class of their own
MARKS = "\u0300\u0301\u0316\u0327\u0344\u0345\u0f71\u0f73\u3099\uff9e\U0001d165"


@pytest.mark.parametrize("form", FORMS)
@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(MARKS + "ae\u00e9\u1f82\uac00\u1161"))))
def test_ordinary_texts_are_as_the_standard_library_has_them(form: NormalForm, text: str) -> None:
    assert normalized(text, form=form) == unicodedata.normalize(form, text)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [40, 50, 99, 100, 101, 149, 150, 500])
@given(data=st.data())
def test_runs_of_marks_are_as_the_standard_library_has_them(form: NormalForm, length: int, data: st.DataObject) -> None:
    # drawn short and repeated: hypothesis makes no texts of hundreds of characters
    marks = data.draw(st.text(MARKS, min_size=1, max_size=20)) * length
    before, after = data.draw(st.text("xe\u00e9\u0f40\uff76", max_size=60)), data.draw(st.text("xe\u00e9", max_size=9))
    text = before + marks[:length] + after + marks[:length]
    assert normalized(text, form=form) == unicodedata.normalize(form, text)


@pytest.mark.parametrize("form", FORMS)
def test_every_mark_of_unicode_is_known(form: NormalForm) -> None:
    decomposed = "NFD" if form == "NFC" else "NFKD"
    # a letter with a mark ends the run before it, a mark in a run may be any of these
    assert _marks(form).characters == {
        character
        for character in map(chr, range(0x110000))
        if unicodedata.combining(unicodedata.normalize(decomposed, character)[0])  # type: ignore[arg-type]
    }


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pair", ["\u0300\u0316", "\u0f73\u0316", "\uff9e\u0300"])
def test_a_megabyte_of_marks_takes_no_quadratic_time(pair: str) -> None:
    text = "a" + pair * 250_000
    begin = time.process_time()
    comparable_bytes(text)
    comparable_words(text)
    view = DocumentView(text)
    rejection(view, UnicodeConfig(type="unicode", normalization="NFC", repair=False))
    # a second or so; the standard library alone takes minutes
    assert time.process_time() - begin < 10
