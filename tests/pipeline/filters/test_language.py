from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from pipeline.document import PipelineError
from pipeline.filter_config import LanguageConfig
from pipeline.filters import chain, language
from pipeline.filters.language import language_of, prepare, rejection
from pipeline.filters.view import DocumentView

TEXTS = {
    "en": "The house that we have seen is on the hill, and it was built by the people of the village.",
    "de": "Das Haus, das wir gesehen haben, steht auf dem Hügel, und es wurde von den Leuten des Dorfes gebaut.",
    "fr": "La maison que nous avons vue est sur la colline, et elle a été construite par les gens du village.",
    "es": "La casa que hemos visto está en la colina, y fue construida por las gentes del pueblo en su tiempo.",
    "it": "La casa che abbiamo visto è sulla collina, e fu costruita dalla gente del paese in un altro tempo.",
    "pt": "A casa que vimos não fica na cidade, mas no alto do monte, e foi construída com a ajuda dos vizinhos.",
    "nl": "Het huis dat we hebben gezien staat op de heuvel, en het werd door de mensen van het dorp gebouwd.",
    "sv": "Huset som vi har sett ligger på kullen, och det byggdes av folket i byn för länge sedan med en plan.",
    "pl": "Dom, który widzieliśmy, stoi na wzgórzu i został zbudowany przez ludzi ze wsi, a nie jest to dla nas nowe.",
    "tr": "Gördüğümüz ev çok güzel ve bir tepenin üzerinde, ama bu köy için daha yeni bir ev gibi değil.",
    "ru": "Дом, который мы видели, стоит на холме, и он был построен жителями деревни, но не для нас.",
    "uk": "Будинок, який ми бачили, стоїть на пагорбі, і він був зведений для людей, але це не наша хата.",
    "ar": "البيت الذي رأيناه على التل في القرية من حجر، كان قد بني بعد ذلك",
    "hi": "जो घर हमने देखा वह पहाड़ी पर है और गाँव के लोगों ने इस को बनाया था",
    "el": "Το σπίτι που είδαμε είναι στον λόφο.",
    "he": "הבית שראינו נמצא על הגבעה.",
    "th": "บ้านที่เราเห็นอยู่บนเนินเขา",
    "ko": "우리가 본 집은 언덕 위에 있다.",
    "ja": "私たちが見た家は丘の上にあります。",
    "zh": "我们看到的房子在山上。",
}


@pytest.mark.parametrize("code", TEXTS)
def test_script_and_stop_words_name_the_language(code: str) -> None:
    assert language_of(DocumentView(TEXTS[code])) == code


@pytest.mark.parametrize("text", ["", "1 2 3 ...", "Lorem ipsum dolor sit amet consectetur", "Հայերեն"])
def test_what_is_none_of_them_has_no_language(text: str) -> None:
    assert language_of(DocumentView(text)) is None


def test_the_share_of_stop_words_is_of_words_with_letters() -> None:
    # `the` is 1 of 4, whatever the digits
    view = DocumentView("The alpha beta gamma 1 2 3 !")
    assert language_of(view, min_score=0.25) == "en"
    assert language_of(view, min_score=0.26) is None


def test_a_twentieth_of_kana_makes_han_japanese() -> None:
    assert language_of(DocumentView("\u5c71" * 19 + "\u306e")) == "ja"
    assert language_of(DocumentView("\u5c71" * 20 + "\u306e")) == "zh"


def test_only_wanted_languages_are_kept() -> None:
    config = LanguageConfig(type="language", languages=("en", "de"))
    reasons = {code: rejection(DocumentView(text), config) for code, text in TEXTS.items()}
    assert reasons == dict.fromkeys(TEXTS, "other_language") | {"en": None, "de": None}


class FakeModel:
    def predict(self, text: str) -> tuple[tuple[str, ...], list[float]]:
        assert "\n" not in text  # fastText refuses it
        return (("__label__eng_Latn",), [0.65]) if text.strip() else ((), [])


@pytest.fixture
def fake_fasttext(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(path: str) -> FakeModel:
        if path.endswith("none.bin"):
            raise ValueError(f"{path} cannot be opened for loading!")
        return FakeModel()

    module: Any = types.ModuleType("fasttext")
    module.load_model = load_model
    monkeypatch.setitem(sys.modules, "fasttext", module)
    language.load_model.cache_clear()


@pytest.mark.usefixtures("fake_fasttext")
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"languages": ["eng_Latn"]}, None),
        ({"languages": ["eng_Latn"], "min_score": 0.66}, "other_language"),
        ({"languages": ["en"]}, "other_language"),
    ],
)
def test_a_model_decides_by_its_own_labels(fields: dict[str, Any], reason: str | None) -> None:
    config = LanguageConfig.model_validate({"type": "language", "model_path": "model.bin"} | fields)
    prepare(config)
    assert rejection(DocumentView("two\nlines"), config) == reason
    assert rejection(DocumentView("\n"), config) == "other_language"


@pytest.mark.usefixtures("fake_fasttext")
def test_each_of_two_models_is_loaded_once_a_run() -> None:
    configs = [LanguageConfig(type="language", languages=("eng_Latn",), model_path=Path(name)) for name in ("a", "b")]
    chain.prepare(configs)
    models = [language.load_model(Path(name)) for name in ("a", "b")]
    for _ in range(3):
        assert chain.rejection(DocumentView("one"), configs) is None
    assert language.load_model.cache_info().misses == 2
    assert [language.load_model(Path(name)) for name in ("a", "b")] == models
    chain.prepare(configs)
    assert language.load_model(Path("a")) is not models[0]


@pytest.mark.usefixtures("fake_fasttext")
def test_a_model_that_cannot_be_loaded_is_one_line() -> None:
    config = LanguageConfig(type="language", languages=("en",), model_path=Path("none.bin"))
    message = r"^none.bin cannot be loaded: .*; wanted a model of fastText, .bin or .ftz$"
    with pytest.raises(PipelineError, match=message):
        prepare(config)


def test_a_missing_fasttext_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fasttext", None)
    language.load_model.cache_clear()
    message = r"model_path needs fastText: pip install 'smollm2-pretraining\[language\]'$"
    with pytest.raises(PipelineError, match=message):
        prepare(LanguageConfig(type="language", languages=("en",), model_path=Path("model.bin")))
