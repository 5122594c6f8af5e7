"""What policy files have in common, whatever their rules are about.

Rules:
- The first rule that matches decides, so rules have an order, and names that tell them apart.
- A file that others may write to is none: whoever writes it lets anything run.
"""

from __future__ import annotations

import datetime
import os
import re
import stat
import zoneinfo
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from redislink.cluster.checked import as_value_error, error_at, parse_checked, reading
from redislink.cluster.yaml_text import YamlText
from redislink.errors import ConfigError
from redislink.files import open_regular, read_opened
from redislink.protocol.list_names import check_name
from redislink.text import one_line

ANY: Final = "*"
STRICT: Final = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def _read(path: str | Path, source: str) -> str:
    """Return the text of a policy file.

    Args:
        path: the file.
        source: its name in errors.

    Raises:
        ConfigError: it cannot be read, or others may write to it.
    """
    with reading(source, "check the path given with --policy"), open_regular(path) as file:
        found = os.fstat(file.fileno())
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & _OTHERS_WRITE:
            raise ConfigError(
                f"{source}: others may write to it, and so let anything run: check it, "
                "then run chmod go-w on it, as its owner"
            )
        return read_opened(file, path)


def _as_list(value: Any) -> Any:
    """One name stands for a list of one."""
    return [value] if isinstance(value, str) else value


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""Names, a single name, or ``"*"``."""


def check_each(names: tuple[str, ...], check: Callable[[str], object]) -> tuple[str, ...]:
    """Check the names of a condition.

    Args:
        names: the names.
        check: raises a ValueError for one that is not valid; not called for ``"*"``.

    Raises:
        ValueError: one is not valid, or ``"*"`` does not stand alone.
    """
    for name in names:
        if name != ANY:
            check(name)
        elif len(names) > 1:
            raise ValueError(f'"{ANY}" stands for all: write it alone, or list names')
    return names


class Window(BaseModel):
    """The times at which a rule matches.

    Attributes:
        days: days of the week, ``mon`` to ``sun``; all, if not given. A window that goes past
            midnight belongs to the day on which it begins.
        begins: local time from which on it matches, ``"HH:MM"`` in quotes.
        ends: local time at which it no longer does; ``"24:00"`` is the end of the day. A time
            before ``from`` is on the next day.
        zone: a time zone, such as ``Europe/Berlin`` or ``UTC``, whose clocks count.
    """

    model_config = STRICT
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = Field(
        default=_DAYS, min_length=1
    )
    begins: str = Field(alias="from")
    ends: str = Field(alias="to")
    zone: str

    @field_validator("begins", "ends")
    @classmethod
    def _valid_time(cls, text: str) -> str:
        if not _TIME.fullmatch(text) and text != "24:00":
            raise ValueError(f'{text!r:.40} is no time of day: write "HH:MM", as in "20:00"')
        return text

    @field_validator("zone")
    @classmethod
    def _valid_zone(cls, zone: str) -> str:
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"{zone!r:.80} is no time zone: use a name such as Europe/Berlin, or UTC"
            ) from None
        return zone

    @model_validator(mode="after")
    def _has_a_length(self) -> Window:
        if self.begins == self.ends or self.begins == "24:00":
            raise ValueError('is empty: write from: "00:00" and to: "24:00" for whole days')
        return self

    def holds(self, now: float) -> bool:
        """Whether it holds at a time, in UTC seconds since 1970."""
        local = datetime.datetime.fromtimestamp(now, zoneinfo.ZoneInfo(self.zone))
        clock, today = f"{local:%H:%M}", local.weekday()
        if self.begins < self.ends:
            return self.begins <= clock < self.ends and _DAYS[today] in self.days
        since_evening = clock >= self.begins and _DAYS[today] in self.days
        return since_evening or (clock < self.ends and _DAYS[today - 1] in self.days)


class NamedRule(BaseModel):
    """What every rule has.

    Attributes:
        name: what people call the rule; reasons and records name it.
    """

    model_config = STRICT
    name: str = Field(min_length=1, max_length=100)

    @field_validator("name")
    @classmethod
    def _one_line(cls, name: str) -> str:
        if one_line(name) != name:
            raise ValueError("is not one line of printable characters: write it as one")
        return name

    @abstractmethod
    def listed_data(self) -> tuple[str, ...]:
        """The data sets that its condition names, or ``"*"``."""


class RuleFile(BaseModel):
    """What every policy file has.

    Attributes:
        rules: the rules in order; the first that matches decides.
        data: path of each data set by its name; relative paths begin at the policy file.
    """

    model_config = STRICT
    WHAT: ClassVar[str]
    """Says what such a file is, for errors."""
    rules: tuple[NamedRule, ...] = ()
    data: dict[str, Path] = {}

    @field_validator("data")
    @classmethod
    def _valid_names(cls, data: dict[str, Path]) -> dict[str, Path]:
        for name in data:
            as_value_error(check_name, name, "data set")
        return data

    @field_validator("rules")
    @classmethod
    def _no_name_twice(cls, rules: tuple[NamedRule, ...]) -> tuple[NamedRule, ...]:
        names = [rule.name for rule in rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rules are named {name!r}: give each its own name")
        return rules

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and validate a policy file.

        Raises:
            ConfigError: it cannot be read, others may write to it, or it is not valid; the message
                names the line, the field and the remedy.
        """
        source = f"policy file {path}"
        return cls.parse(_read(path, source), source, Path(path).absolute().parent)

    @classmethod
    def parse(cls, text: str, source: str, directory: Path) -> Self:
        """Parse and validate the text of a policy file.

        Args:
            text: the YAML.
            source: its name in errors.
            directory: where relative paths of data sets begin.

        Raises:
            ConfigError: see `load`.
        """
        written = YamlText(text, source)
        read = parse_checked(cls, written.content, source, cls.WHAT, written)
        policy = read.model_copy(
            update={"data": {name: directory / path for name, path in read.data.items()}}
        )
        for index in range(len(policy.rules)):
            policy._check_rule(index, source, written)
        return policy

    def _check_rule(self, index: int, source: str, written: YamlText) -> None:
        """Check what a rule by itself does not show.

        Raises:
            ConfigError: it does not fit the rest of the file.
        """
        unknown = set(self.rules[index].listed_data()) - {ANY} - self.data.keys()
        if unknown:
            raise error_at(
                source,
                ("rules", index, "data"),
                f"{min(unknown)!r} is no data set: add it under data, with its path",
                written,
            )
