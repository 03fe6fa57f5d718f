from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from foretaste.errors import PlanError
from foretaste.spec import Registry, build, nearest, spec


@spec
class Soup:
    name: str
    salt: float = 0.5
    spoons: int = 1
    heat: Literal["mild", "hot"] = "mild"


@spec
class Menu:
    soups: tuple[Soup, ...]


def test_defaults_live_in_the_fields() -> None:
    soup = Soup(name="leek")
    assert (soup.salt, soup.spoons, soup.heat) == (0.5, 1, "mild")
    assert soup == build(Soup, {"name": "leek"})


def test_a_spec_is_frozen_and_takes_no_positions() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Soup(name="leek").salt = 0.1  # type: ignore[misc]
    with pytest.raises((TypeError, ValidationError)):
        Soup("leek")  # type: ignore[call-arg]


def test_a_spec_is_validated_when_constructed_too() -> None:
    with pytest.raises(ValidationError):
        Soup(name="leek", pepper=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Soup(name="leek", spoons="many")  # type: ignore[arg-type]


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"Soup has no field 'salty'\. Did you mean 'salt'"):
        build(Soup, {"name": "leek", "salty": 1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"Soup\.name"),
        ({"name": 3}, r"Soup\.name.*got 3"),
        ({"name": "leek", "salt": "much"}, r"Soup\.salt.*got 'much'"),
        ({"name": "leek", "salt": float("nan")}, r"Soup\.salt.*finite"),
        ({"name": "leek", "salt": float("inf")}, r"Soup\.salt.*finite"),
        ({"name": "leek", "heat": "cold"}, r"Soup\.heat.*'mild' or 'hot'"),
    ],
)
def test_a_wrong_value_names_its_field_and_itself(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        build(Soup, fields)


def test_a_fault_inside_a_spec_inside_a_spec_is_found() -> None:
    with pytest.raises(PlanError, match=r"Menu\.soups\.1\.salt"):
        build(Menu, {"soups": [{"name": "leek"}, {"name": "pea", "salt": "much"}]})
    with pytest.raises(PlanError, match=r"Menu\.soups\.0\.pepper"):
        build(Menu, {"soups": [{"name": "leek", "pepper": 1}]})


def test_nearest_suggests_only_what_is_near() -> None:
    assert nearest("sst", ["sst2", "imdb"]) == " Did you mean 'sst2'? Known: imdb, sst2."
    assert nearest("SST2", ["sst2", "imdb"]) == " Did you mean 'sst2'? Known: imdb, sst2."
    assert nearest("weather", ["sst2", "imdb"]) == " Known: imdb, sst2."


def test_a_registry_is_a_mapping_whose_errors_help() -> None:
    soups: Registry[int] = Registry("soup", {"leek": 1})
    soups.add("pea")(2)
    assert (list(soups), len(soups), soups["pea"]) == (["leek", "pea"], 2, 2)
    assert "leek" in soups
    assert "leeks" not in soups
    number: object = 3
    assert number not in soups
    with pytest.raises(PlanError, match=r"Unknown soup 'leeks'\. Did you mean 'leek'"):
        soups["leeks"]


def test_a_name_is_given_once() -> None:
    soups: Registry[int] = Registry("soup", {"leek": 1})
    with pytest.raises(ValueError, match="soup 'leek' is registered twice"):
        soups.add("leek")(2)
    assert soups["leek"] == 1


def test_adding_to_a_registry_leaves_the_given_mapping_alone() -> None:
    entries = {"leek": 1}
    Registry("soup", entries).add("pea")(2)
    assert entries == {"leek": 1}
