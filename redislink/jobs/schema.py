"""JSON Schemas for a job's arguments, in the part of Draft 2020-12 that says all that it means.

A JSON Schema lets through what it does not mention: an unknown or misspelt keyword, options beside
``properties``, a text where there is only a ``maximum``, a pattern that matches in the middle. In a
policy each of these would accept what nobody has thought of. So what is left unsaid is an error
when the policy is loaded.
"""

from __future__ import annotations

import graphlib
import math
import re
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from jsonschema import Draft202012Validator, FormatChecker, SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry

from redislink.jobs.arguments import Arguments
from redislink.text import one_line

Path: TypeAlias = tuple[int | str, ...]
DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
MOST_MATCHED: Final = 256
"""Characters of a text that a pattern is tried on; a longer one does not match."""

_BY_NAME: Final = frozenset({"properties", "dependentSchemas", "$defs"})
_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SINGLE: Final = frozenset(
    {
        "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
        "unevaluatedItems", "unevaluatedProperties",
    }
)  # fmt: skip
_OF_TYPE: Final = {
    "number": frozenset(
        {"maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "multipleOf"}
    ),
    "string": frozenset({"maxLength", "minLength", "pattern"}),
    "array": frozenset(
        {
            "contains", "items", "maxContains", "maxItems", "minContains", "minItems",
            "prefixItems", "unevaluatedItems", "uniqueItems",
        }
    ),
    "object": frozenset(
        {
            "additionalProperties", "dependentRequired", "dependentSchemas", "maxProperties",
            "minProperties", "properties", "propertyNames", "required",
            "unevaluatedProperties",
        }
    ),
}  # fmt: skip
"""Keywords that JSON Schema ignores for values of other types."""
_OTHERS: Final = frozenset(
    {
        "$comment", "$ref", "$schema", "const", "default", "deprecated", "description", "enum",
        "examples", "title", "type",
    }
)  # fmt: skip
_KNOWN: Final = frozenset().union(_BY_NAME, _LISTS, _SINGLE, _OTHERS, *_OF_TYPE.values())
_DEFS: Final = "#/$defs/"
_MOST_WAYS: Final = 10**9
"""In which a pattern may try to match a text: some seconds at most."""
_REPEATS: Final = re.compile(r"[*+]|\{[0-9]*,[0-9]*\}")
_VARIES: Final = re.compile(r"[*+?|]|\{[0-9]*,[0-9]*\}")
_GROUP: Final = re.compile(r"\(([^()]*)\)([*+{])?")
_PLAIN_GROUP: Final = re.compile(r"\(\?(?::|<?[=!]|P<\w+>)", re.ASCII)


class SchemaProblem(Exception):
    """A schema cannot be used.

    Attributes:
        path: keys and indices from the schema to the place.
        text: what is wrong, and what to do.
    """

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self.path = path
        self.text = text


class ArgumentSchema:
    """A JSON Schema that arguments match, or do not."""

    def __init__(self, schema: Any) -> None:
        """Args:
        schema: a mapping; an empty one matches all arguments.

        Raises:
            SchemaProblem: it is no such schema, or leaves unsaid what it does not mention.
        """
        _check_json(schema, ())
        if not isinstance(schema, dict):
            raise SchemaProblem(
                (), "is not a JSON Schema: write a mapping with type and properties"
            )
        if str(schema.get("$schema", DRAFT)).rstrip("#") != DRAFT:
            raise SchemaProblem(
                ("$schema",), f"is another draft of JSON Schema: write for {DRAFT}, or leave it out"
            )
        try:
            Draft202012Validator.check_schema(schema, FormatChecker(formats=()))
        except SchemaError as error:
            raise SchemaProblem(
                tuple(error.absolute_path), f"is not valid: {one_line(error.message, 200)}"
            ) from None
        _check_references(schema)
        for path, part in _parts(schema, ()):
            _check_part(path, part)
        if schema:
            _check_top(schema)
        self._validator = _Validator(schema, registry=Registry())

    def mismatch(self, arguments: Arguments) -> str:
        """Why arguments do not match, for people at this agent; "" if they match."""
        error = next(self._validator.iter_errors(arguments), None)
        if error is None:
            return ""
        place = "".join(f".{part}" for part in error.absolute_path)
        return f"arguments{place}: {one_line(error.message, 200)}"


def _matches_whole(
    _validator: Any, pattern: str, instance: Any, _schema: Any
) -> Iterator[ValidationError]:
    """The keyword ``pattern``: unlike ``$`` alone, it does not let a newline follow."""
    if not isinstance(instance, str):
        return
    if len(instance) > MOST_MATCHED or not re.fullmatch(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


_Validator: Any = extend(Draft202012Validator, {"pattern": _matches_whole})


def _check_json(value: Any, path: Path, depth: int = 0) -> None:
    """Refuse what YAML has and JSON has not, such as dates, and aliases in a circle."""
    if depth > 32:
        raise SchemaProblem(path, "goes too deep: write it with $defs")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_json(item, (*path, key), depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_json(item, (*path, index), depth + 1)
    elif value is not None and not isinstance(value, str | bool | int | float):
        raise SchemaProblem(path, "is not JSON: put it in quotes")


def _parts(schema: Any, path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each schema within a schema, with its path."""
    if not isinstance(schema, dict):
        return  # true or false
    yield path, schema
    for keyword, inner in schema.items():
        here = (*path, keyword)
        if keyword in _SINGLE:
            yield from _parts(inner, here)
        elif keyword in _LISTS:
            for index, item in enumerate(inner):
                yield from _parts(item, (*here, index))
        elif keyword in _BY_NAME:
            for name, item in inner.items():
                yield from _parts(item, (*here, name))


def _check_part(path: Path, part: dict[str, Any]) -> None:
    for keyword in part:
        if keyword == "format":
            raise SchemaProblem((*path, keyword), "is not checked by JSON Schema: use pattern")
        if keyword not in _KNOWN or (keyword in ("$defs", "$schema") and path):
            raise SchemaProblem(
                (*path, keyword),
                "there is no such keyword here: check the spelling, or remove it",
            )
        for kind, keywords in _OF_TYPE.items():
            if keyword in keywords and kind not in _types(part):
                raise SchemaProblem(
                    (*path, keyword),
                    f"says nothing of what is not of type {kind}: add type: {kind} beside it",
                )
    if "pattern" in part:
        _check_pattern((*path, "pattern"), part["pattern"])


def _types(part: dict[str, Any]) -> set[str]:
    """The types that a schema names; an integer is a number too."""
    named = part.get("type", [])
    types = {named} if isinstance(named, str) else set(named)
    return types | {"number"} if "integer" in types else types


def _check_pattern(path: Path, pattern: str) -> None:
    if not pattern.startswith("^") or not pattern.endswith("$") or pattern.endswith("\\$"):
        raise SchemaProblem(path, "matches anywhere in a text: begin it with ^ and end it with $")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        raise SchemaProblem(path, "is not a regular expression of Python: mend it") from None
    # Such a pattern may try every way to cut a text into pieces; there are too many.
    rest = re.sub(r"\[\^?\]?[^\]]*\]", "x", re.sub(r"\\.", "x", pattern, flags=re.DOTALL))
    rest = _PLAIN_GROUP.sub("(", rest)
    repeats = len(_REPEATS.findall(rest))
    ways = math.comb(MOST_MATCHED + repeats, repeats) << rest.count("?")
    while match := _GROUP.search(rest):
        varies = _VARIES.search(match[1])
        if varies and match[2]:
            raise SchemaProblem(
                path,
                f"repeats {match[0][:40]}, in which something repeats or varies, so some texts "
                "would keep the agent busy for ever: take a list of texts instead",
            )
        ways *= 1 + match[1].count("|")
        quantifier = match[2] or ""
        rest = rest[: match.start()] + "x*"[: 1 + bool(varies)] + quantifier + rest[match.end() :]
    if ways > _MOST_WAYS:
        raise SchemaProblem(
            path,
            "has so many parts that repeat or are optional that some texts would keep the agent "
            "busy for ever: use enum, or take a list of texts instead",
        )


def _check_references(schema: dict[str, Any]) -> None:
    """Every ``$ref`` leads to one of ``$defs``, and none leads back to itself."""
    definitions = schema.get("$defs", {})
    leads_to: dict[str, set[str]] = {}
    for path, part in _parts(schema, ()):
        reference = part.get("$ref")
        if reference is None:
            continue
        name = str(reference).removeprefix(_DEFS)
        if not str(reference).startswith(_DEFS) or name not in definitions:
            raise SchemaProblem(
                (*path, "$ref"), f"leads nowhere: use {_DEFS}NAME, with NAME in $defs at the top"
            )
        if path[:1] == ("$defs",):
            leads_to.setdefault(str(path[1]), set()).add(name)
    try:
        graphlib.TopologicalSorter(leads_to).prepare()
    except graphlib.CycleError:
        raise SchemaProblem(("$defs",), "they lead to each other in a circle: undo that") from None


def _check_top(schema: dict[str, Any]) -> None:
    kinds = _types(schema)
    if not kinds or not kinds <= {"array", "object"}:
        raise SchemaProblem(
            ("type",), "is missing, or fits no arguments: write type: object, or type: array"
        )
    for kind, closing in (
        ("object", ("additionalProperties", "unevaluatedProperties")),
        ("array", ("items", "unevaluatedItems")),
    ):
        if kind in kinds and not any(word in schema for word in closing):
            raise SchemaProblem(
                (),
                f"does not say what else may be there: add {closing[0]}: false (or what each of "
                "them must be)",
            )
