"""``redislink forward``: TCP connections of any program, carried through a session.

Rules: it listens on this machine alone, and connects to nothing but what ``--allow`` names.
"""

from __future__ import annotations

from typing import Annotated

import typer

from redislink.cli import errors, who
from redislink.cli.errors import Verbose, check_finite
from redislink.cli.who import ClusterOption, IdentityOption, PartyOption
from redislink.errors import ConfigError
from redislink.identity.keypair import Identity
from redislink.settings import RedisLinkSettings


def forward(
    local: Annotated[
        list[str] | None,
        typer.Option(
            "-L",
            "--local",
            metavar="[HOST:]PORT:PARTY:NAME",
            help="Listen here, and carry each connection to what PARTY allows under NAME. HOST is "
            "a loopback address; port 0 is any that is free. unix:PATH:PARTY:NAME listens on a "
            "unix socket. You may repeat this option.",
            show_default=False,
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="[PARTY:]NAME=HOST:PORT",
            help="What the others, or PARTY alone, may reach here under NAME; also NAME=unix:PATH. "
            "They reach nothing else. You may repeat this option.",
            show_default=False,
        ),
    ] = None,
    cluster: ClusterOption = None,
    party: PartyOption = None,
    identity: IdentityOption = None,
    retries: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="End after N failed attempts in a row to join a party again. Otherwise it goes on "
            "for ever.",
            show_default=False,
        ),
    ] = None,
    retry_delay: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, callback=check_finite, help="Seconds between two attempts."
        ),
    ] = 1.0,
    verbose: Verbose = False,
) -> None:
    """Carry TCP connections between programs here and at other parties, as ssh -L does.

    bob lets alice reach a program that listens at his side; alice's programs find it on port 8000:

        redislink forward --allow alice:web=127.0.0.1:80

        redislink forward -L 8000:bob:web

    Both dial out to the broker, and what they carry is sealed. When the other party is lost, all
    connections with it are reset, and it is joined again once it is back. The command runs until
    SIGTERM or Ctrl-C.
    """
    from redislink.interop.forward.forwarder import Forwarder
    from redislink.interop.forward.link import LOGGER, Plan, Retries
    from redislink.interop.forward.places import Targets, parse_allowed, parse_forward

    settings = RedisLinkSettings.load()
    _, spec, name = who.resolve(settings, cluster, party, identity)
    forwards = [parse_forward(text, spec, name) for text in local or ()]
    others = [party for party in spec.party_names if party != name]
    targets = Targets([parse_allowed(text, spec, name) for text in allow or ()], others)
    if not forwards and not targets.parties:
        raise ConfigError(
            f"{name}: nothing to forward: give -L PORT:PARTY:NAME for what programs reach from "
            "here, or --allow NAME=HOST:PORT for what others may reach here"
        )
    key = None if identity is None else Identity.load(identity)
    plan = Plan(spec, name, settings, key, forwards, targets, Retries(retries, retry_delay))
    with errors.say_for_ever(name, "redislink.progress", LOGGER):
        Forwarder(plan).serve()
