"""YAML files that a pydantic model describes: each error has its line, its place and what to do.

The cluster file, policies and job files are read this way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from redislink.cluster.yaml_text import YamlText
from redislink.errors import ConfigError

_OTHER_THAN_TEXT: Final = frozenset({"string_type", "model_type", "tuple_type", "dict_type"})
"""pydantic's errors about a value that was perhaps meant as text, or is empty."""
_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)


@contextlib.contextmanager
def reading(source: str, remedy: str) -> Iterator[None]:
    """What goes wrong in this block, which reads a file's text, becomes a ConfigError.

    Args:
        source: the file's name in errors.
        remedy: what to do if it cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}: {remedy}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not UTF-8 text: save it as UTF-8 YAML") from None


def as_value_error(check: Callable[[str, str], _T], value: str, what: str) -> _T:
    """Return what the check does; its ConfigError as a ValueError, to which pydantic adds where."""
    try:
        return check(value, what)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def parse_checked(
    model: type[_Model], content: Any, source: str, what: str, written: YamlText | None = None
) -> _Model:
    """Validate a mapping.

    Args:
        model: what describes it.
        content: the mapping, as parsed from YAML.
        source: its name in errors, usually the path of the file.
        what: what such a file is, as in ``a cluster file is a mapping with session and parties``.
        written: the text that ``content`` is from, which knows the lines.

    Raises:
        ConfigError: the content is not valid; the message names the place and the remedy.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: {what}, this is {_yaml_kind(content)}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = first["loc"]
        text = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            text = "there is no such field: check the spelling, or remove it"
        elif first["type"] == "missing":
            text = "is missing: add it"
        elif written is not None and first["type"] in _OTHER_THAN_TEXT:
            text = written.misread(path) or text
        raise error_at(source, path, text, written) from None


def error_at(
    source: str, path: Sequence[int | str], text: str, written: YamlText | None
) -> ConfigError:
    """The error about the value at a path of keys and indices."""
    line = "" if written is None else written.place(path)
    place = ".".join(str(part) for part in path)
    where = f"{source}{line}: {place}: " if place else f"{source}{line}: "
    return ConfigError(where + text)


def _yaml_kind(content: Any) -> str:
    if content is None:
        return "empty"
    return {"list": "a list", "str": "a text"}.get(type(content).__name__, "not a mapping")
