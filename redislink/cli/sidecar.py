"""``redislink sidecar``: the service through which an SPU without `IChannel` reaches the broker."""

from __future__ import annotations

import ipaddress
import secrets
import shlex
import threading
from pathlib import Path
from typing import Annotated

import typer

from redislink.cli import errors, who
from redislink.cli.errors import ExitCode, Verbose, say, show
from redislink.cli.termination import sigterm_interrupts
from redislink.cli.who import ClusterOption, IdentityOption, PartyOption
from redislink.errors import ConfigError
from redislink.identity.keypair import Identity
from redislink.settings import RedisLinkSettings, environment_of_others


def sidecar(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help="Program to start beside it, with its arguments: any Python from 3.8 on. None: "
            "print what to set in its environment.",
            show_default=False,
        ),
    ] = None,
    cluster: ClusterOption = None,
    party: PartyOption = None,
    identity: IdentityOption = None,
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="Loopback address to listen on; port 0 chooses a free one."
        ),
    ] = "127.0.0.1:0",
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File whose first line is the token that requests show; mode 0600. Otherwise the "
            "token is random.",
            show_default=False,
        ),
    ] = None,
    ignore_ports: Annotated[
        bool,
        typer.Option(
            "--ignore-ports",
            help="Tell links apart by their ids alone: for parties that write different ports for "
            "the same link. All parties do so.",
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Carry the links of a program whose SPU has no IChannel: spu 0.9, SecretFlow 1.14, RayFed.

    The program listens on nothing. It is an HTTP client of the sidecar on this machine's loopback:

        redislink sidecar --party alice -- python3.10 prog.py
    """
    settings = RedisLinkSettings.load()
    path, _, name = who.resolve(settings, cluster, party, identity)
    given = {"cluster_file": path, "party": name}
    if identity is not None:
        Identity.load(identity)  # so that an error in it comes now
        given["identity_file"] = identity
    settings = RedisLinkSettings.load(**given)
    host, port = _loopback(listen)
    token = secrets.token_urlsafe(32)
    if token_file is not None:
        from redislink.broker.credentials import read_password

        token = read_password(token_file)
    with sigterm_interrupts(), errors.say_progress(name):
        code = _serve(settings, name, host, port, token, command, by_ports=not ignore_ports)
    raise SystemExit(code)


def _serve(
    settings: RedisLinkSettings,
    name: str,
    host: str,
    port: int,
    token: str,
    command: list[str] | None,
    *,
    by_ports: bool,
) -> int:
    from redislink.interop.parties import Parties
    from redislink.interop.sidecar import command as program
    from redislink.interop.sidecar.links import Links
    from redislink.interop.sidecar.server import SidecarServer

    links = Links(Parties(settings), say, by_ports=by_ports)
    try:
        server = SidecarServer(links, token, host, port)
    except OSError as error:
        raise ConfigError(f"--listen {host}:{port}: {error.strerror}: choose another") from None
    server.start()
    failed: str | None = None
    try:
        if command:
            environment = environment_of_others()
            code = program.run(
                command,
                environment
                | program.variables(server.address, token, environment.get("PYTHONPATH", "")),
            )
            failed = f"its program ended with exit code {code}" if code else None
            return code
        say(f"{name}: the sidecar listens on {server.address}; Ctrl-C stops it")
        for variable, value in program.variables(server.address, token).items():
            show(f"export {variable}={shlex.quote(value)}")
        _for_ever()
        return int(ExitCode.OK)
    except KeyboardInterrupt:
        failed = "its sidecar was stopped"
        say(f"{name}: sidecar stopped")
        return int(ExitCode.OK) if command is None else int(ExitCode.INTERRUPTED)
    finally:
        server.stop()
        links.close(failed)


def _for_ever() -> None:
    threading.Event().wait()


def _loopback(listen: str) -> tuple[str, int]:
    """Host and port of an address.

    Raises:
        ConfigError: it is no loopback address.
    """
    host, _, port = listen.rpartition(":")
    try:
        if not ipaddress.IPv4Address(host).is_loopback or not 0 <= int(port) <= 65535:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--listen {listen}: it listens on this machine's loopback only: give 127.0.0.1:PORT"
        ) from None
    return host, int(port)
