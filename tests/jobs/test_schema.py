"""Schemas of arguments: what they leave unsaid is an error, and no other machine is asked."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from redislink.jobs.schema import DRAFT, ArgumentSchema, SchemaProblem

OPTIONS = {
    "type": "object",
    "properties": {
        "epochs": {"type": "integer", "minimum": 1, "maximum": 100},
        "plaintext": {"const": False},
        "tag": {"type": "string", "pattern": "^[a-z]+$"},
        "seed": {"$ref": "#/$defs/seeds"},
    },
    "required": ["epochs"],
    "additionalProperties": False,
    "$defs": {"seeds": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}},
}


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 3},
        {"epochs": 100, "plaintext": False, "tag": "abc", "seed": [1, 2]},
    ],
)
def test_what_matches(arguments: Any) -> None:
    assert ArgumentSchema(OPTIONS).mismatch(arguments) == ""


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({}, "arguments:"),
        ([], "arguments:"),
        (["--epochs", "3"], "arguments:"),
        ({"epochs": 0}, "arguments.epochs:"),
        ({"epochs": 101}, "arguments.epochs:"),
        ({"epochs": "3"}, "arguments.epochs:"),
        ({"epochs": True}, "arguments.epochs:"),
        ({"epochs": 3, "plaintext": True}, "arguments.plaintext:"),
        ({"epochs": 3, "plaintext": 0}, "arguments.plaintext:"),
        ({"epochs": 3, "verbose": True}, "arguments:"),
        ({"epochs": 3, "tag": "ab1"}, "arguments.tag:"),
        ({"epochs": 3, "tag": "ab\n"}, "arguments.tag:"),
        ({"epochs": 3, "tag": "a" * 257}, "arguments.tag:"),
        ({"epochs": 3, "seed": [1, 2, 3, 4]}, "arguments.seed:"),
        ({"epochs": 3, "seed": [1, "2"]}, "arguments.seed.1:"),
    ],
)
def test_what_does_not_match(arguments: Any, place: str) -> None:
    assert ArgumentSchema(OPTIONS).mismatch(arguments).startswith(place)


def test_an_empty_schema_matches_all() -> None:
    assert ArgumentSchema({}).mismatch({"x": 1}) == ""


def test_the_reason_is_safe_to_print() -> None:
    reason = ArgumentSchema(OPTIONS).mismatch({"epochs": "\x1b[2J" + "x" * 3000})
    assert reason.isprintable()
    assert len(reason) < 300


def _with(**more: Any) -> dict[str, Any]:
    return OPTIONS | more


def _property(schema: Any) -> dict[str, Any]:
    return _with(properties={"epochs": schema})


_CIRCLE: list[Any] = []
_CIRCLE.append(_CIRCLE)


@pytest.mark.parametrize(
    ("schema", "path", "text"),
    [
        ([], (), "is not a JSON Schema"),
        ("*", (), "is not a JSON Schema"),
        (_with(**{"$schema": "http://json-schema.org/draft-07/schema#"}), ("$schema",), "draft"),
        (_with(**{"$schema": 7}), ("$schema",), "draft"),
        (_with(type="objekt"), ("type",), "is not valid"),
        (_property({"type": "integer", "maximum": "100"}), ("properties", "epochs", "maximum"),
         "is not valid"),
        (_property({"type": "integer", "maxmum": 100}), ("properties", "epochs", "maxmum"),
         "no such keyword"),
        (_property({"maximum": 100}), ("properties", "epochs", "maximum"), "add type"),
        (_property({"type": "string", "maximum": 9}), ("properties", "epochs", "maximum"),
         "add type: number"),
        (_property({"type": ["integer", "null"], "minLength": 1}),
         ("properties", "epochs", "minLength"), "add type: string"),
        (_property({"pattern": "^a$"}), ("properties", "epochs", "pattern"), "add type"),
        (_property({"anyOf": [{"minLength": 1}]}), ("properties", "epochs", "anyOf", 0,
         "minLength"), "add type"),
        (_property({"type": "string", "format": "date"}), ("properties", "epochs", "format"),
         "use pattern"),
        (_with(patternProperties={"^a": True}), ("patternProperties",), "no such keyword"),
        (_with(**{"$id": "https://example.com/"}), ("$id",), "no such keyword"),
        (_property({"$dynamicRef": "#x"}), ("properties", "epochs", "$dynamicRef"),
         "no such keyword"),
        (_property({"$defs": {}}), ("properties", "epochs", "$defs"), "no such keyword"),
        (_property({"$ref": "https://example.com/s"}), ("properties", "epochs", "$ref"),
         "leads nowhere"),
        (_property({"$ref": "file:///etc/passwd"}), ("properties", "epochs", "$ref"),
         "leads nowhere"),
        (_property({"$ref": "#/$defs/none"}), ("properties", "epochs", "$ref"), "leads nowhere"),
        (_property({"$ref": "#"}), ("properties", "epochs", "$ref"), "leads nowhere"),
        (_with(**{"$defs": {"seeds": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/seeds"}}}),
         ("$defs",), "circle"),
        (_with(**{"$defs": {"seeds": {"$ref": "#/$defs/seeds"}}}), ("$defs",), "circle"),
        ({"properties": {}, "additionalProperties": False}, ("properties",), "add type"),
        ({"title": "all"}, ("type",), "type: object"),
        ({"type": "string"}, ("type",), "type: object"),
        ({"type": ["object", "null"], "additionalProperties": False}, ("type",), "type: object"),
        ({"type": "object"}, (), "additionalProperties"),
        ({"type": "array"}, (), "items"),
        ({"type": ["object", "array"], "items": False}, (), "additionalProperties"),
        (_property({"const": datetime.date(2026, 1, 1)}), ("properties", "epochs", "const"),
         "in quotes"),
        (_property({"const": {1, 2}}), ("properties", "epochs", "const"), "not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_schema_here(schema: Any, path: tuple[Any, ...], text: str) -> None:
    with pytest.raises(SchemaProblem) as found:
        ArgumentSchema(schema)
    assert found.value.path == path
    assert text in found.value.text


def test_an_alias_in_a_circle_is_found() -> None:
    with pytest.raises(SchemaProblem, match="too deep"):
        ArgumentSchema({"enum": _CIRCLE})


def _pattern(pattern: str) -> ArgumentSchema:
    return ArgumentSchema(
        {"type": "array", "items": {"type": "string", "pattern": pattern}, "maxItems": 9}
    )


@pytest.mark.parametrize(
    "pattern",
    ["[a-z]+", "^[a-z]+", "[a-z]+$", r"^a\$", "^[a-z$", "^(a$", "^a{99999999999}$"],
)
def test_a_pattern_is_one_and_has_both_its_ends(pattern: str) -> None:
    with pytest.raises(SchemaProblem):
        _pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "^(a+)+$", "^(a|a)*$", "^(?:a*)*$", "^((a+)b?)*$", "^(a{1,20})*$", "^(a?){1,40}$",
        "^(?P<x>a+)*$", r"^(\w+\s?)*$", "^x(y(a*)z)+$", "^a*a*a*a*a*b$", "^a*a*a*" + "a?" * 9 + "$",
        "^" + "a?" * 30 + "$", "^" + "(a|a)" * 30 + "$",
    ],
)  # fmt: skip
def test_a_pattern_that_some_texts_keep_busy_is_refused(pattern: str) -> None:
    with pytest.raises(SchemaProblem, match="for ever"):
        _pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "^[a-z]+_[0-9]+-[a-z]*$",
        "^(train|test|eval|" + "|".join("abcdefghijklmnopqrst") + ")$",
        "^[a-z]+$",
        r"^[(+)]*\(a+\)$",
        "^(ab)+$",
        "^(a|b)$",
        "^(?:[a-z]{3},){0,9}[a-z]+$",
        "^(a+)?$",
    ],
)
def test_other_patterns_end_soon(pattern: str) -> None:
    schema = _pattern(pattern)
    for text in ("a" * 256, "ab" * 128, "(" * 256, "abc," * 64):
        assert schema.mismatch([text]) == "" or schema.mismatch([text]).startswith("arguments.0:")


def test_an_alternative_does_not_escape_the_ends() -> None:
    schema = _pattern("^safe|also-safe$")
    assert schema.mismatch(["safe", "also-safe"]) == ""
    for text in ("safe; rm", "not also-safe"):
        assert schema.mismatch([text])


def test_its_own_draft_may_be_named() -> None:
    assert ArgumentSchema(_with(**{"$schema": DRAFT})).mismatch({"epochs": 3}) == ""
