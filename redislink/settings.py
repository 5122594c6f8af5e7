"""`RedisLinkSettings`: what differs between parties and machines.

Rules:
- Read from the environment (``REDISLINK_*``) and from ``.env`` in the working directory; nothing
  else in the package reads the environment, but for what a child of a program imports before it
  can import this (`interop/startup`). The cluster file holds what all parties share.
- Of both, ``.env`` and what ``redislink init`` left in `SESSION_DIR`, ``.env`` takes precedence.
- Such a file decides where passwords go. It is therefore read only if nobody but this user can have
  written it, and each process says once on stderr (log level WARNING) that it read it, or why not.
- Every time is finite: see `LONGEST_SECONDS`.
"""

from __future__ import annotations

import contextlib
import enum
import io
import json
import logging
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from dotenv import dotenv_values
from pydantic import Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from redislink.errors import ConfigError, UsageError
from redislink.files import open_regular, read_opened
from redislink.forking import renew_in_child
from redislink.text import one_line

LONGEST_SECONDS: Final = 2_000_000
"""The longest timeout, 23 days: poll(2) takes no more."""
SESSION_DIR: Final = Path("redislink-session")
"""In the working directory: what ``redislink init`` made, and its ``.env``."""
_ENV_FILE: Final = ".env"
_PARTY: Final = "{party}"
_PREFIX: Final = "REDISLINK_"
PROXY_SETTING: Final = f"{_PREFIX}BROKER_PROXY"
_ATTEMPT: Final = f"{_PREFIX}ATTEMPT"
"""No setting: what one attempt of ``redislink run --retries`` tells the next one."""
_NO_FILES: Final = f"{_PREFIX}NO_SETTINGS_FILES"
"""No setting: what ``redislink simulate`` tells its parties."""
_PROXY_VARIABLES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
"""The first one that is set counts, as in curl."""
_HANDED_ON: Final = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONUSERBASE"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "OMP_NUM_THREADS", "XLA_FLAGS"),
)
_OF_ONE_RUN: Final = frozenset(
    {
        "aliases", "cluster_file", "data", "identity_file", "journal_dir", "journal_fresh", "party",
        "policy_file", "programs_dir", "results_dir", "stats_file", "trace_dir", "trial_dir",
        "trusted_driver", "work_dir",
    }
)  # fmt: skip
_OF_THE_REAL_BROKER: Final = frozenset(
    {
        "broker_url", "broker_tls_ca", "broker_tls_cert", "broker_tls_key",
        "broker_tls_key_password_file", "broker_password_file", "broker_proxy",
        "broker_proxy_password_file", "broker_proxy_tls_ca", "cluster_file", "identity_file",
        "party", "psk_dir",
    }
)  # fmt: skip
"""What a simulated party never has from a real one."""
_OF_REAL_RUNS: Final = _OF_THE_REAL_BROKER | {
    *("audit_file", "journal_dir", "metrics_push_url", "metrics_textfile"),
}
"""What it does not take from a settings file, either."""
_MOST_BYTES: Final = 1 << 20
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_logger = logging.getLogger("redislink.settings")
_said: Final[set[str]] = set()
_saying: Final = threading.Lock()
renew_in_child(_saying)

_Seconds = Annotated[float, Field(le=LONGEST_SECONDS, allow_inf_nan=False)]


def check_seconds(what: str, seconds: float) -> float:
    """A timeout in seconds, checked, and cut to at most `LONGEST_SECONDS`.

    Args:
        what: the name of the timeout, for the message.
        seconds: the timeout that a program passed; infinity means to wait for ever.

    Raises:
        UsageError: ``seconds`` is not a number, or is negative.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise UsageError(
            f"a {what} is a number of seconds, 0 or more, not {one_line(repr(seconds), 40)}"
        )
    return min(seconds, LONGEST_SECONDS)


class LinkMode(enum.StrEnum):
    """How the members of an SPU device are linked."""

    CHANNELS = "channels"
    """Through the broker. No party listens."""
    BRPC = "brpc"
    """SPU's own network stack. Every member listens at its ``brpc_address``."""
    MEM = "mem"
    """All parties are threads of one process."""


class SpuLogLevel(enum.StrEnum):
    """From which level on SPU's own log is shown; SPU's names."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"
    UNCHANGED = "unchanged"
    """As SPU has it, or the program."""


class LogFormat(enum.StrEnum):
    """How the command ``redislink`` logs to stderr."""

    TEXT = "text"
    JSON = "json"
    """One JSON object per line; see `redislink.logs.JsonFormatter`."""


@dataclass(frozen=True, slots=True)
class ProxyChoice:
    """The proxy that the settings choose.

    Attributes:
        url: the proxy's URL.
        named_by: the environment variable that holds it.
        no_proxy: hosts to be dialled directly, as ``NO_PROXY`` lists them; None if the setting
            names the proxy itself, for all hosts.
    """

    url: SecretStr
    named_by: str
    no_proxy: str | None = None


class RedisLinkSettings(BaseSettings):
    """The settings of one party.

    The environment variable of a setting is ``REDISLINK_`` and its name in capitals.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    broker_url: SecretStr | None = Field(
        default=None,
        description="redis://, rediss:// (TLS) or unix:// URL of the broker, with user and "
        "password; takes precedence over the cluster file's. Also redis+sentinel://HOST,HOST/NAME, "
        "redis+cluster://HOST,HOST (rediss+… with TLS), and fakeredis://NAME within one process. "
        "Several independent brokers: their URLs with commas between them, in the same order at "
        "every party.",
    )
    broker_tls_ca: Path | None = Field(
        default=None,
        description="PEM file of the CA that signed the broker's certificate; no other CA is then "
        "trusted. Not set: the system's CAs.",
    )
    broker_tls_cert: Path | None = Field(
        default=None, description="PEM file of this party's client certificate."
    )
    broker_tls_key: Path | None = Field(
        default=None, description="PEM file of the client certificate's private key."
    )
    broker_tls_key_password_file: Path | None = Field(
        default=None,
        description="File whose first line is the pass phrase of that key, if it has one; mode "
        "0600.",
    )
    broker_password_file: Path | None = Field(
        default=None,
        description="File whose first line is the password of REDISLINK_BROKER_URL's user; mode "
        "0600. Takes precedence over a password in the URL. It is read again for each connection, "
        "so you may change the password during a run. With several brokers it has one line for "
        "each, in their order; an empty line keeps the password in the URL.",
    )
    broker_proxy: SecretStr | None = Field(
        default=None,
        description="http://, https:// (TLS to the proxy) or socks5h:// URL of the proxy through "
        "which this party dials the broker, with user and password. env: the proxy that "
        "HTTPS_PROXY or ALL_PROXY names, except for hosts in NO_PROXY; otherwise redislink ignores "
        "these variables. none: no proxy.",
    )
    broker_proxy_password_file: Path | None = Field(
        default=None,
        description="File whose first line is the password of the proxy's user; mode 0600. Takes "
        "precedence over a password in the proxy's URL. It is read again for each connection.",
    )
    broker_proxy_tls_ca: Path | None = Field(
        default=None,
        description="PEM file of the CA that signed the certificate of a proxy with https://. Not "
        "set: the system's CAs.",
    )
    broker_timeout: _Seconds = Field(
        default=60.0,
        gt=0,
        description="Seconds that the broker may be unreachable before the run ends.",
    )
    broker_wait: bool = Field(
        default=False,
        description="Whether a broker that cannot be reached at the start is waited for as long, "
        "too. Otherwise that is an error at once, because the URL may be wrong.",
    )
    broker_move_after: _Seconds = Field(
        default=3.0,
        ge=0.5,
        description="With several brokers: seconds that the present one may be away before all "
        "parties move to the next one.",
    )
    reply_timeout: _Seconds = Field(
        default=10.0,
        gt=0,
        description="Seconds to reach the broker, and to wait for each of its replies.",
    )
    line_timeout: _Seconds = Field(
        default=30.0,
        gt=0,
        description="Seconds after which the kernel gives up a connection to the broker on which "
        "nothing is acknowledged; four round trips, if they take longer.",
    )
    blpop_timeout: _Seconds = Field(
        default=5.0,
        ge=0.05,
        le=20,
        description="Seconds that one BLPOP waits before the next one is sent.",
    )
    cluster_file: Path | None = Field(default=None, description="Path of the cluster file.")
    party: str | None = Field(default=None, description="Name of this party in the cluster file.")
    jobs_dir: Path = Field(
        default=Path("~/.local/state/redislink/jobs"),
        description="Directory where a driver keeps what it knows of the jobs that it submitted.",
    )
    identity_file: Path | None = Field(
        default=None,
        description="File with this party's private key, from redislink keygen or init. {party} "
        "is replaced by the party's name.",
    )
    psk_dir: Path | None = Field(
        default=None,
        description="Directory that holds a file PEER.psk for each peer with a pre-shared key.",
    )
    tamper_limit: int = Field(
        default=100, ge=1, description="Frames that fail to open before the session ends."
    )
    link_mode: LinkMode | None = Field(
        default=None,
        description="channels, brpc or mem, for every SPU device; takes precedence over the "
        "cluster file's use_redis_channel.",
    )
    connect_timeout: _Seconds = Field(
        default=300.0, gt=0, description="Seconds to wait for every other party at the start."
    )
    recv_timeout: _Seconds = Field(
        default=600.0, gt=0, description="Seconds that a receive waits for its message."
    )
    peer_timeout: _Seconds = Field(
        default=30.0, ge=0.5, description="Seconds of silence after which a peer counts as lost."
    )
    close_timeout: _Seconds = Field(
        default=10.0, gt=0, description="Seconds that closing may take."
    )
    window_bytes: int = Field(
        default=32 << 20,
        ge=64 << 10,
        description="Bytes that this party puts on the broker before a peer asks for them. What "
        "the peer asks for comes on top: at most twice as many in all.",
    )
    peer_memory_bytes: int = Field(
        default=8 << 30,
        ge=1 << 20,
        description="Bytes of one peer's messages that this party holds until its program receives "
        "them. Any more end the session.",
    )
    chunk_bytes: int = Field(
        default=4 << 20,
        ge=1 << 10,
        le=256 << 20,
        description="Most bytes of a message in one list element. Never more than 4 MiB, an eighth "
        "of REDISLINK_WINDOW_BYTES, or 1 MiB if that is more; and 1 MiB where a round trip to the "
        "broker takes 0.3 ms or more.",
    )
    part_bytes: int | None = Field(
        default=None,
        ge=0,
        le=64 << 10,
        description="Least bytes of the chunks in which messages of up to 4 MiB travel, so that "
        "the broker forwards the first ones while the last are being sent; 0: in one, if that may "
        "be so large. Not set: what is best for the line, whose speed is measured at the start; 0 "
        "if a round trip to the broker takes less than 0.3 ms.",
    )
    lookahead: int = Field(
        default=32,
        ge=0,
        le=64,
        description="Number of tags for which BLPOPs are sent before a receive asks for them; 0 "
        "turns this off.",
    )
    busy_poll: float = Field(
        default=0.001,
        ge=0,
        le=0.01,
        description="Seconds for which a receive polls for its message before it sleeps, where a "
        "round trip to the broker takes less than 0.3 ms and this process may use two processors "
        "or more: to be woken takes long. It is left off while it brings nothing. 0: never.",
    )
    kept_memory_bytes: int = Field(
        default=256 << 20,
        ge=0,
        description="Bytes of freed memory that a process with an SPU link keeps for the next "
        "large message, if it uses glibc's malloc; 0 leaves malloc unchanged. Room for "
        "messages of more than 32 MiB is kept once the first one has passed.",
    )
    native: bool = Field(
        default=True,
        description="Whether the compiled twins of the hot path's functions are used, where they "
        "were built: redislink version says so. Not: the same in Python, which is slower.",
    )
    list_ttl: int = Field(
        default=3600, ge=60, le=604800, description="Seconds after which an unread list expires."
    )
    status: bool = Field(
        default=True,
        description="Whether this party writes its status (counts, times, the tags it waits for) "
        "to the broker once a second, for redislink top.",
    )
    log_format: LogFormat = Field(
        default=LogFormat.TEXT,
        description="text or json: the format in which the command redislink writes to stderr.",
    )
    spu_log_level: SpuLogLevel = Field(
        default=SpuLogLevel.WARN,
        description="debug, info, warn or error: from which level on SPU's own log is shown, which "
        "SPU writes to stdout. With redislink run --verbose: info. unchanged: redislink leaves it "
        "as SPU or the program has it.",
    )
    metrics_textfile: Path | None = Field(
        default=None,
        description="File to write this party's metrics to, for node_exporter's textfile collector "
        "(*.prom). {session} and {party} are replaced by their names. Needs redislink[metrics].",
    )
    metrics_push_url: SecretStr | None = Field(
        default=None,
        description="http:// or https:// URL of a Prometheus push gateway for the metrics, with "
        "user and password. Needs redislink[metrics].",
    )
    metrics_interval: _Seconds = Field(
        default=15.0, ge=0.1, description="Seconds between writes or pushes of the metrics."
    )
    stats_file: Path | None = Field(
        default=None,
        description="File to which this party writes the statistics of its run when it leaves: "
        "where its time went, bytes per peer, what was resent. {session} and {party} are replaced "
        "by their names. Not set: none.",
    )
    trace_dir: Path | None = Field(
        default=None,
        description="Directory in which to record this party's timeline of the run, "
        "SESSION.PARTY.trace.jsonl. Not set: no timeline.",
    )
    trace_limit: int = Field(
        default=500_000,
        ge=1,
        description="Most sends and receives in a timeline; each takes about 100 bytes.",
    )

    audit_file: Path | None = Field(
        default=None,
        description="File to which this party appends its audit record: steps, reveals and their "
        "receivers, no value. {session} and {party} are replaced by their names. Not set: no "
        "record.",
    )
    journal_dir: Path | None = Field(
        default=None,
        description="Directory in which this party keeps a journal of the session's steps, "
        "SESSION.PARTY/, from which the program goes on when all parties start again. All parties "
        "keep one, or none does. Not set: no journal.",
    )
    journal_fresh: bool = Field(
        default=False,
        description="Whether to begin a journal anew and keep an existing one aside. All parties "
        "must do so at once.",
    )
    journal_required: bool = Field(
        default=True,
        description="Whether the run ends if its journal cannot be written. If not, all parties "
        "go on without journals, and the run cannot be resumed.",
    )

    data: Annotated[dict[str, Path], NoDecode] = Field(
        default={},
        description="Data sets that the program may open with session.data(NAME): a JSON object of "
        'names and paths, such as {"patients": "/srv/patients.csv"}. {session} and {party} in a '
        "path are replaced by their names.",
    )
    results_dir: Path | None = Field(
        default=None,
        description="Directory in which session.result(NAME, VALUE) writes NAME.msgpack. {session} "
        "and {party} are replaced by their names. Not set: results are not kept.",
    )

    programs_dir: Path | None = Field(
        default=None,
        description="Directory in which redislink agent and redislink programs keep the programs "
        "that may run as jobs here.",
    )

    policy_file: Path | None = Field(
        default=None,
        description="Policy by which redislink agent decides about jobs. {party} is replaced by "
        "the party's name.",
    )
    work_dir: Path | None = Field(
        default=None,
        description="Directory in which redislink agent keeps what is known of its jobs, their "
        "logs and results. {party} is replaced by the party's name.",
    )

    aliases: Annotated[dict[str, str], NoDecode] = Field(
        default={},
        description="What programs that were written for other links call the parties: a JSON "
        'object of their names and ours, such as {"node:0": "alice", "node:1": "bob"}.',
    )
    trusted_driver: str | None = Field(
        default=None,
        description="Name of the party whose functions may run here, whatever they do: set by "
        "redislink ppd, which asks. For trials only.",
    )
    trial_dir: Path | None = Field(
        default=None,
        description="Directory of a trial, which redislink run --trial sets for the processes of "
        "the program. Whoever can read it has the keys of all parties.",
    )

    request_timeout: _Seconds | None = Field(
        default=None,
        gt=0,
        description="Seconds that a worker of MPLang may take for one request of this driver. Not "
        "set: any time, while it lives.",
    )

    _from_env_file: Mapping[str, str | None] = PrivateAttr(default_factory=dict)

    def __init__(self, _env_file: str | Path | None = _ENV_FILE, **values: Any) -> None:
        """Args:
        _env_file: a settings file to read instead of ``.env`` and that of `SESSION_DIR`; None
            reads none.
        values: settings by name; they take precedence over all others.
        """
        given = {name.lower() for name in values}
        found: dict[str, str | None] = {}
        if _env_file == _ENV_FILE and _NO_FILES in os.environ:
            _env_file = None
        if _env_file == _ENV_FILE:
            found |= _read_env_file(SESSION_DIR / _ENV_FILE)
        if _env_file is not None:
            found |= _read_env_file(Path(_env_file))
        set_outside = {name.upper() for name, value in os.environ.items() if value}
        used: dict[str, Any] = {
            name: value
            for name, value in found.items()
            if name not in given and f"{_PREFIX}{name.upper()}" not in set_outside
        }
        super().__init__(**used, **values)
        # Not their values where those may hold a password.
        self._from_env_file = {n: None if n in _OF_REAL_RUNS else v for n, v in used.items()}

    def identity_file_of(self, party: str | None = None) -> Path | None:
        """The file with a party's private key; None if none is set.

        Args:
            party: its name; None for the ``party`` of the settings. Without either, a path with
                ``{party}`` in it names no file.
        """
        return _of_party(self.identity_file, party or self.party)

    def policy_file_of(self, party: str | None = None) -> Path | None:
        """The policy of a party's agent; as `identity_file_of`."""
        return _of_party(self.policy_file, party or self.party)

    def work_dir_of(self, party: str | None = None) -> Path | None:
        """The work directory of a party's agent; as `identity_file_of`."""
        return _of_party(self.work_dir, party or self.party)

    def cluster_file_to_use(self, given: str | Path | None = None) -> str | Path:
        """The cluster file that was given, or else the one that the settings name.

        Raises:
            ConfigError: there is neither.
        """
        path = given if given is not None else self.cluster_file
        if path is None:
            here = Path().absolute()
            found = (
                f"{here / SESSION_DIR} names none"
                if SESSION_DIR.is_dir()
                else (f"there is no {SESSION_DIR}/ in {here}")
            )
            raise ConfigError(
                f"no cluster file: {found}: go to the directory in which redislink init made one, "
                "run redislink init here, give --cluster FILE, or set REDISLINK_CLUSTER_FILE"
            )
        return path

    def is_from_env_file(self, name: str) -> bool:
        """Whether this setting came from ``.env``, not from the environment or the program."""
        return name in self._from_env_file

    def proxy_choice(self) -> ProxyChoice | None:
        """The proxy through which the broker is dialled; None for none."""
        given = "" if self.broker_proxy is None else self.broker_proxy.get_secret_value()
        if given.lower() in ("", "none"):
            return None
        if given.lower() != "env":
            return ProxyChoice(SecretStr(given), PROXY_SETTING)
        choice = proxy_of_environment()
        if choice is None:
            say_once(
                f"{PROXY_SETTING}=env: neither HTTPS_PROXY nor ALL_PROXY is set, so the broker is "
                "dialled directly"
            )
        return choice

    @field_validator(
        "broker_tls_ca",
        "broker_tls_cert",
        "broker_tls_key",
        "broker_tls_key_password_file",
        "broker_password_file",
        "broker_proxy_password_file",
        "broker_proxy_tls_ca",
    )
    @classmethod
    def _file_exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            what = f"{path} is not a regular file" if path.exists() else f"there is no file {path}"
            raise ValueError(f"{what}: check the path")
        return path

    @field_validator("data", "aliases", mode="before")
    @classmethod
    def _from_json(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise ValueError("is not JSON") from None

    @field_validator("psk_dir")
    @classmethod
    def _directory_exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_dir():
            raise ValueError(f"there is no directory {path}: check the path")
        return path

    @classmethod
    def load(cls, **overrides: Any) -> RedisLinkSettings:
        """Read the settings from the environment and ``.env``.

        Args:
            overrides: settings by name; they take precedence over both.

        Raises:
            ConfigError: a setting is wrong; the message names it and says why.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = str(first["loc"][0]) if first["loc"] else "settings"
            text = str(first["msg"]).removeprefix("Value error, ")
            field = cls.model_fields.get(name)
            meant = field.description if field and field.description else "check the value"
            raise ConfigError(f"{_PREFIX}{name.upper()}: {text}: {meant}") from None


def _of_party(path: Path | None, party: str | None) -> Path | None:
    if path is None or (party is None and _PARTY in str(path)):
        return None
    return Path(str(path).replace(_PARTY, party or ""))


def proxy_of_environment() -> ProxyChoice | None:
    """The proxy that the environment names for all programs; None if it names none."""
    for name in _PROXY_VARIABLES:
        if url := os.environ.get(name):
            whole = url if "://" in url else f"http://{url}"
            no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
            return ProxyChoice(SecretStr(whole), name, no_proxy)
    return None


def name_attempt(environment: Mapping[str, str], number: int, begins_at: float) -> dict[str, str]:
    """The environment of the next attempt of ``redislink run --retries``.

    Args:
        environment: that of the first attempt.
        number: the number of the next one.
        begins_at: when it is to begin, in seconds of `time.monotonic`.
    """
    return {**environment, _ATTEMPT: f"{number} {begins_at!r}"}


def take_attempt() -> tuple[int, float]:
    """What `name_attempt` was told; (1, 0.0) in a first attempt.

    It is removed from the environment, so that no process that the program starts inherits it.
    """
    with contextlib.suppress(ValueError):
        number, begins_at = os.environ.pop(_ATTEMPT, "").split()
        return int(number), float(begins_at)
    return 1, 0.0


def environment_of_others() -> dict[str, str]:
    """This process's environment without our settings: for a program that is not to have them."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}


def environment_of_simulation(settings: RedisLinkSettings) -> dict[str, str]:
    """The environment of a party that is simulated here, where a real one may have its settings.

    The simulated one reads no settings file. Of those, it gets what tells nothing of the broker,
    keys and records of the real one; of the environment, what tells nothing of broker and keys.
    """
    left_out = {f"{_PREFIX}{name.upper()}" for name in _OF_THE_REAL_BROKER}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    for name, text in settings._from_env_file.items():
        if text:
            environment[f"{_PREFIX}{name.upper()}"] = text
    return environment | {_NO_FILES: "1"}


def environment_of_job(settings: RedisLinkSettings) -> dict[str, str]:
    """The environment of a process that runs with these settings, and inherits no other.

    Settings of a single run are left out: its party, cluster file, identity, journal and timeline.
    Paths are made absolute, because the process has a directory of its own.
    """
    names = (*_HANDED_ON, *_PROXY_VARIABLES, "no_proxy", "NO_PROXY")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    for name in settings.model_fields_set - _OF_ONE_RUN:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        elif isinstance(value, Path):
            value = value.absolute()
        elif isinstance(value, bool):
            value = str(value).lower()
        if value is not None:
            environment[f"{_PREFIX}{name.upper()}"] = str(value)
    return environment


def _read_env_file(path: Path) -> Mapping[str, str]:
    """The settings in a file, by lower-case name; none if it is missing or cannot be trusted.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8.
    """
    try:
        link = path.lstat()
        with open_regular(path) as file:
            found = os.fstat(file.fileno())
            mistrust = _why_mistrusted(link, found)
            text = "" if mistrust else read_opened(file, path, _MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"settings file {path.absolute()}: is not UTF-8 (byte {error.start + 1}): save it as "
            f"UTF-8, for example with iconv -f {_likely_encoding(error.object)} -t utf-8"
        ) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "cannot be read"
        raise ConfigError(
            f"settings file {path.absolute()}: {why}: check it, or move it away"
        ) from None
    variables = dotenv_values(stream=io.StringIO(text.removeprefix("\ufeff")))
    named = {name.upper(): value for name, value in variables.items() if value}
    settings = {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in named.items()
        if name.startswith(_PREFIX)
    }
    if mistrust:
        say_once(f"settings file {path.absolute()} not read: {mistrust}")
    elif settings:
        say_once(f"settings read from {path.absolute()}")
    return settings


def _likely_encoding(content: bytes) -> str:
    """The encoding for ``iconv``: output of a Windows shell begins with a byte order mark."""
    return "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin1"


def _why_mistrusted(link: os.stat_result, found: os.stat_result) -> str:
    """Why somebody else may have written this file, and what to do; "" if nobody can have."""
    ours = {0, os.geteuid()}
    if not {link.st_uid, found.st_uid} <= ours:
        return "you do not own it: copy the lines that you trust into a file of your own"
    if found.st_mode & _OTHERS_WRITE:
        return "others may write to it: check its contents, then run chmod go-w on it"
    return ""


def say_once(text: str) -> None:
    """Say something about the settings on stderr (log level WARNING), once in this process."""
    with _saying:
        if text in _said:
            return
        _said.add(text)
    _logger.warning("%s", one_line(text))
