"""What a run is given, and what it gives back: named data sets, and named results.

Rules: a program names both, and no path; whoever starts the run says which file a name stands for.
So the same program runs at every organisation, and a job that somebody else submits can read
nothing but what the policy names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from redislink.errors import ConfigError
from redislink.files import replacing
from redislink.logs import PartyLogger
from redislink.protocol.list_names import check_name
from redislink.settings import RedisLinkSettings
from redislink.values import decode_value_untrusted, encode_value

SUFFIX: Final = ".msgpack"


@dataclass(frozen=True)
class Exchange:
    """The data sets and results of one party in one run.

    Attributes:
        session: the session's name.
        party: the party's name.
        data: path of each data set by its name.
        results: the directory for results; None if there is none.
        kept: the packed results by name, if they are kept in memory.
    """

    session: str
    party: str
    data: Mapping[str, Path] = field(default_factory=dict)
    results: Path | None = None
    kept: dict[str, bytes] | None = None

    @classmethod
    def of(
        cls,
        settings: RedisLinkSettings,
        session: str,
        party: str,
        kept: dict[str, bytes] | None = None,
    ) -> Exchange:
        """What the settings say; ``{session}`` and ``{party}`` in paths become the names."""

        def named(path: Path) -> Path:
            return Path(str(path).replace("{session}", session).replace("{party}", party))

        data = {name: named(path) for name, path in settings.data.items()}
        results = settings.results_dir
        return cls(session, party, data, None if results is None else named(results), kept)

    def find(self, name: str) -> Path:
        """The path of a data set.

        Raises:
            ConfigError: there is no data set with this name, or no file; the message lists those
                that there are.
        """
        path = self.data.get(name)
        if path is None:
            known = ", ".join(sorted(self.data)) or "none"
            raise ConfigError(
                f"{self.party}: no data set {name!r:.80} is given: known are {known}; give it with "
                "redislink run --data NAME=PATH, REDISLINK_DATA, or data in the agent's policy"
            )
        if not path.exists():
            raise ConfigError(
                f"{self.party}: data set {name}: there is no file {path}: check the path given "
                "with --data, REDISLINK_DATA or the agent's policy"
            )
        return path

    def give_back(self, name: str, value: Any) -> None:
        """Keep a result; one with the same name is replaced.

        Raises:
            ConfigError: the name is not valid, or the file cannot be written.
            PayloadTypeError: the value is none of `redislink.values`.
        """
        check_name(name, "result")
        packed = encode_value(value)
        if self.kept is not None:
            self.kept[name] = packed
        if self.results is not None:
            self._write(self.results / f"{name}{SUFFIX}", packed)
        elif self.kept is None:
            PartyLogger(self.session, self.party, "redislink.progress").warning(
                "result %s is not kept: give a directory with redislink run --results DIR or "
                "REDISLINK_RESULTS_DIR",
                name,
            )

    def _write(self, path: Path, packed: bytes) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(path, durable=True) as file:
                file.buffer.write(packed)
        except OSError as error:
            raise ConfigError(
                f"{self.party}: result {path}: cannot be written ({error.strerror or error}): "
                "check the directory given with --results or REDISLINK_RESULTS_DIR"
            ) from None


def read_result(path: str | Path) -> Any:
    """The value that `Session.result` wrote into a file. Arrays are read-only.

    Raises:
        ConfigError: the file cannot be read.
        ValueDecodeError: it is no such file.
    """
    try:
        return decode_value_untrusted(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"result {path}: {error.strerror or error}: check the path") from None
