"""The arguments of a job: a JSON list or object, and the command line that it becomes.

Rules:
- What is accepted here is JSON, is bounded, and becomes words of ``sys.argv`` and nothing else: no
  shell, no environment variable, no file name of redislink's.
- An option and its value are one word (``--epochs=3``): a text that begins with ``-`` stays a
  value, and cannot become an option that the policy's schema has not seen.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, TypeAlias

from redislink.errors import ConfigError
from redislink.text import one_line

Scalar: TypeAlias = str | int | float | bool | None
Arguments: TypeAlias = list[Any] | dict[str, Any]
"""A list of `Scalar`, or an object whose values are each a `Scalar` or a list of them."""

MOST_WORDS: Final = 1000
MOST_TEXT: Final = 4096
"""Characters of one text."""
MOST_BYTES: Final = 64 << 10
"""Of all arguments, as JSON in UTF-8."""
_OPTION: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}", re.ASCII)
_INT: Final = 1 << 63


def check_arguments(arguments: Any) -> None:
    """Check that arguments are what a job may have.

    Raises:
        ConfigError: they are not such JSON, or there are too many; the message says where.
    """
    if type(arguments) is list:
        for index, item in enumerate(arguments):
            if item is None or item is True or item is False:
                raise ConfigError(
                    f"arguments[{index}]: a list of arguments holds texts and numbers: write it as "
                    "text, or remove it"
                )
            _check_scalar(item, f"arguments[{index}]")
        count = len(arguments)
    elif type(arguments) is dict:
        count = sum(_check_option(name, value) for name, value in arguments.items())
    else:
        raise ConfigError(
            "arguments: are a list of texts and numbers, or a mapping of options to values: write "
            "one of both"
        )
    if count > MOST_WORDS:
        raise ConfigError(f"arguments: more than {MOST_WORDS}: put them into a data set")
    if len(json.dumps(arguments, ensure_ascii=False).encode()) > MOST_BYTES:
        raise ConfigError(f"arguments: more than {MOST_BYTES} bytes: put them into a data set")


def to_argv(arguments: Arguments) -> list[str]:
    """The words that follow the program's name on its command line.

    A list gives one word for each item. In an object, a text or number gives ``--name=value``, true
    gives ``--name``, false and null give nothing, and a list repeats the option.

    Raises:
        ConfigError: see `check_arguments`.
    """
    check_arguments(arguments)
    if isinstance(arguments, list):
        return [_word(item) for item in arguments]
    words = []
    for name, value in arguments.items():
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                words.append(f"--{name}")
            elif item is not None and item is not False:
                words.append(f"--{name}={_word(item)}")
    return words


def _word(item: Scalar) -> str:
    return item if isinstance(item, str) else json.dumps(item)


def _check_option(name: Any, value: Any) -> int:
    """Check an option; return how many words it can become."""
    if type(name) is not str or not _OPTION.fullmatch(name):
        shown = one_line(str(name), 80)
        raise ConfigError(
            f"arguments: {shown!r} cannot be the name of an option: use letters, digits, _ and -, "
            "and begin with a letter"
        )
    items = value if type(value) is list else [value]
    for item in items:
        _check_scalar(item, f"arguments.{name}")
    return len(items)


def _check_scalar(item: Any, place: str) -> None:
    # Exact types: numpy's scalars, which a value may hold too, are floats and no JSON.
    if item is None or item is True or item is False:
        return
    if type(item) is str:
        if len(item) > MOST_TEXT:
            raise ConfigError(f"{place}: has more than {MOST_TEXT} characters: use a data set")
        if "\0" in item or not _is_unicode(item):
            raise ConfigError(f"{place}: has a character that no argument can hold: remove it")
    elif type(item) is int:
        if not -_INT <= item < _INT:
            raise ConfigError(f"{place}: a number of more than 64 bits: write it as text")
    elif type(item) is float:
        if not math.isfinite(item):
            raise ConfigError(f"{place}: NaN and infinity are no JSON: write it as text")
    else:
        kind = {"dict": "a mapping", "list": "a list in a list", "bytes": "bytes"}.get(
            type(item).__name__, f"a {type(item).__name__}"
        )
        raise ConfigError(f"{place}: is {kind}: use texts, numbers, true and false")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return False
    return True
