from __future__ import annotations

import pytest

from pipeline.config import FiltersConfig, LengthFilterConfig
from pipeline.filters import rules
from pipeline.filters.rules import rejection


def test_every_section_of_the_config_is_asked_in_its_order() -> None:
    assert [name for name, _ in rules.RULES] == list(FiltersConfig.model_fields)


def test_a_rule_is_given_its_own_section() -> None:
    filters = FiltersConfig(length=LengthFilterConfig(max_characters=3))
    assert rejection("abcd", filters) == "too_long"
    assert rejection("abc", filters) is None


def test_the_first_rule_that_objects_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    never, once, again = (lambda text, config: None), (lambda text, config: "once"), (lambda text, config: "again")
    monkeypatch.setattr(rules, "RULES", tuple(("length", rule) for rule in (never, once, again)))
    assert rejection("any", FiltersConfig()) == "once"
