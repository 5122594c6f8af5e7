"""Job files: what a driver writes down to have it run.

Rules: what the file leaves out comes from the cluster file (all parties, all devices). Everything
else that goes into the offer is in the file, or follows from the program's bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
    field_validator,
)

from redislink.cluster.checked import error_at, parse_checked, reading
from redislink.cluster.spec import ClusterSpec
from redislink.cluster.yaml_text import YamlText
from redislink.errors import ConfigError
from redislink.files import read_text
from redislink.jobs.arguments import check_arguments
from redislink.jobs.offer import MOST_SOURCE, Offer, check_digest
from redislink.jobs.program import ENTRY, Program
from redislink.protocol.list_names import check_name
from redislink.units import Duration

_STRICT = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
_DIGEST: Final = "sha256:"
_ALL: Final = "*"
"""Stands for all parties."""
_SINGULAR: Final = {"results": "result", "parties": "party", "devices": "device"}


def _one_as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_ONE_OR_MORE: Final[dict[str, Any]] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
}
_Names = Annotated[tuple[str, ...], BeforeValidator(_one_as_list), WithJsonSchema(_ONE_OR_MORE)]
_Data = Annotated[
    dict[str, _Names],
    WithJsonSchema(
        {
            "anyOf": [
                *_ONE_OR_MORE["anyOf"],
                {"type": "object", "additionalProperties": _ONE_OR_MORE},
            ]
        }
    ),
]


class JobSpec(BaseModel):
    """A job file.

    Attributes:
        program: path of a program, a Python file or a directory with ``main.py``; relative paths
            begin at the job file. Or a digest, ``sha256:…``, of one that the agents have.
        name: what the program is called; the name of its file or directory, if not given.
        attach: whether the program travels with the offer, for agents that do not have it. Each
            of them then asks a person.
        arguments: a list of words; or a mapping of options, in which ``epochs: 3`` becomes
            ``--epochs=3``, ``plaintext: true`` becomes ``--plaintext``, and a list repeats the
            option.
        data: names of the data sets that the program asks for: a list for all parties, or a
            mapping of parties to lists (``"*"`` stands for all that are not named).
        parties: who takes part; all parties of the cluster file, if not given.
        devices: the devices that the program uses; all of the cluster file that only have such
            parties as members, if not given.
        results: names of the results that the driver wants.
        expires: how long the offer stays valid, if not all agents have started it.
    """

    model_config = _STRICT
    program: str
    name: str = ""
    attach: Annotated[bool, Field(strict=True)] = False
    arguments: list[Any] | dict[str, Any] = []
    data: _Data = {}
    parties: _Names | None = None
    devices: _Names | None = None
    results: _Names = ()
    expires: Duration = 86400
    _directory: Path = PrivateAttr(default=Path())
    _source: str = PrivateAttr(default="job file")
    _written: YamlText | None = PrivateAttr(default=None)

    @field_validator("arguments", mode="before")
    @classmethod
    def _valid_arguments(cls, arguments: Any) -> Any:
        arguments = [] if arguments is None else arguments
        try:
            check_arguments(arguments)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return arguments

    @field_validator("data", mode="before")
    @classmethod
    def _for_each_party(cls, data: Any) -> Any:
        if data is None:
            return {}
        return {_ALL: data} if isinstance(data, str | list) else data

    @field_validator("results", "parties", "devices")
    @classmethod
    def _valid_names(cls, names: tuple[str, ...] | None, info: Any) -> tuple[str, ...] | None:
        return names and _checked(names, _SINGULAR[info.field_name])

    @field_validator("data")
    @classmethod
    def _valid_data(cls, data: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for names in data.values():
            _checked(names, "data set")
        return data

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        return name and _checked((name,), "program")[0]

    @field_validator("program")
    @classmethod
    def _valid_program(cls, program: str) -> str:
        if program.startswith(_DIGEST):
            try:
                check_digest(program)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return program

    @classmethod
    def load(cls, path: str | Path) -> JobSpec:
        """Read and validate a job file.

        Raises:
            ConfigError: it cannot be read, or is not valid; the message names the line, the field
                and the remedy.
        """
        source = f"job file {path}"
        with reading(source, "check the path"):
            text = read_text(path)
        return cls.parse(text, source, Path(path).absolute().parent)

    @classmethod
    def parse(cls, text: str, source: str, directory: Path) -> JobSpec:
        """Parse and validate the text of a job file.

        Args:
            text: the YAML.
            source: its name in errors.
            directory: where the program's relative path begins.

        Raises:
            ConfigError: see `load`.
        """
        written = YamlText(text, source)
        spec = parse_checked(
            cls, written.content, source, "a job file is a mapping with program", written
        )
        if spec.attach and spec.program.startswith(_DIGEST):
            problem = "only a program that is here can be attached: write its path as program"
            raise error_at(source, ("attach",), problem, written)
        spec._directory, spec._source, spec._written = directory, source, written
        return spec

    def read_program(self) -> Program | None:
        """The program, read anew; None if the file names only its digest.

        Raises:
            ConfigError: it cannot be read, or is not what a program may be.
        """
        if self.program.startswith(_DIGEST):
            return None
        return Program.read(self._directory / self.program)

    def offer(self, cluster: ClusterSpec, *, driver: str, job: str, now: float) -> Offer:
        """The offer that this file describes.

        Args:
            cluster: the cluster file.
            driver: who offers it.
            job: the job's id, from `redislink.jobs.offer.new_job_id`.
            now: UTC seconds since 1970.

        Raises:
            ConfigError: the program cannot be read, or a name is not in the cluster file.
        """
        program = self.read_program()
        parties = cluster.party_names if self.parties is None else self.parties
        self._check_known("parties", parties, cluster.party_names)
        data = dict(self.data)
        if _ALL in data:
            data = dict.fromkeys(parties, data.pop(_ALL)) | data
        self._check_known("data", tuple(data), parties)
        return Offer(
            job=job,
            driver=driver,
            issued=int(now),
            expires=int(now) + self.expires,
            program=self.program if program is None else program.digest,
            program_name=self._name(),
            source=self._attached(program),
            arguments=self.arguments,
            data={party: names for party, names in data.items() if names},
            parties=parties,
            devices=self._devices(cluster, parties),
            results=self.results,
        )

    def _name(self) -> str:
        if self.name or self.program.startswith(_DIGEST):
            return self.name
        return default_name(self._directory / self.program)

    def _devices(self, cluster: ClusterSpec, parties: tuple[str, ...]) -> tuple[str, ...]:
        usable = tuple(d for d, s in cluster.devices.items() if set(s.members) <= set(parties))
        if self.devices is None:
            return usable
        self._check_known("devices", self.devices, tuple(cluster.devices))
        for device in self.devices:
            if device not in usable:
                raise self._error(
                    "devices",
                    f"{device} has members that are not among the job's parties: add them there",
                )
        return self.devices

    def _check_known(self, field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
        for name in names:
            if name not in known:
                text = f"{name!r:.80} is not there: use {', '.join(known) or 'none'}"
                raise self._error(field, text)

    def _error(self, field: str, text: str) -> ConfigError:
        return error_at(self._source, (field,), text, self._written)

    def _attached(self, program: Program | None) -> bytes | None:
        if program is None or not self.attach:
            return None
        if len(program.packed) > MOST_SOURCE:
            raise self._error(
                "attach",
                f"the program has more than {MOST_SOURCE >> 20} MiB, too much to attach: have it "
                "added at each agent with redislink programs add",
            )
        return program.packed


def default_name(path: Path) -> str:
    """What a program is called by its path: the name of its directory, or of its file.

    Raises:
        ConfigError: that cannot be a name.
    """
    place = path.resolve()
    if place.name == ENTRY:
        place = place.parent
    return check_name(place.name if place.is_dir() else place.stem, "program")


def _checked(names: tuple[str, ...], what: str) -> tuple[str, ...]:
    """Return names; raise a ValueError, which pydantic reports with its place, for a wrong one."""
    try:
        for name in names:
            check_name(name, what)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if len(set(names)) != len(names):
        raise ValueError(f"lists a {what} twice: name each once")
    return names
