"""``redislink keygen`` and ``fingerprint``: the keys of parties.

Rules: a private key goes into a file that only its owner can read, never replaces a file, and never
appears on the screen; anybody may see what is printed.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml

from redislink.cli.errors import Verbose, say, show
from redislink.cluster import ClusterSpec, load_cluster
from redislink.cluster.trust import whom_it_trusts
from redislink.errors import ConfigError
from redislink.identity.keypair import (
    KEY_BYTES,
    Identity,
    fingerprint,
    format_public_key,
    parse_public_key,
    write_secret,
)
from redislink.identity.signing import SigningKey, format_signing_key
from redislink.protocol.list_names import check_name
from redislink.settings import RedisLinkSettings

_DIGEST_DIGITS: Final = 12


def keygen(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the party.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File to write; otherwise NAME.key, or PEER.psk with --psk.",
            show_default=False,
        ),
    ] = None,
    psk: Annotated[
        str | None,
        typer.Option(
            metavar="PEER",
            help="Make a pre-shared key of NAME and PEER instead of NAME's private key.",
            show_default=False,
        ),
    ] = None,
    driver: Annotated[
        bool,
        typer.Option(
            "--driver", help="NAME submits jobs and computes nothing: print its line for drivers."
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Make the private key of a party or driver, in a file that only its owner can read.

    The one line on stdout is its line for the cluster file. The file itself stays on this
    machine: set REDISLINK_IDENTITY_FILE to it.
    """
    check_name(name, "party")
    if psk is not None:
        _make_psk(name, check_name(psk, "party"), out)
        return
    path = out or Path(f"{name}.key")
    identity = Identity.generate()
    identity.save(path, f"private key of {name}, from redislink keygen: keep it to yourself")
    show(f"- {_line(name, identity, signs=not driver)}")
    say(f"wrote {path}, which stays here; fingerprint {fingerprint(identity.public_key)}")


def _make_psk(name: str, peer: str, out: Path | None) -> None:
    if name == peer:
        raise ConfigError("a pre-shared key is between two parties: give --psk another name")
    path = out or Path(f"{peer}.psk")
    write_secret(
        path,
        secrets.token_bytes(KEY_BYTES),
        f"pre-shared key between {name} and {peer}, from redislink keygen: keep it to yourselves",
        "pre-shared key file",
    )
    say(
        f"wrote {path}: put it into {name}'s REDISLINK_PSK_DIR as {peer}.psk and, by a safe "
        f"way that is not the broker, into {peer}'s as {name}.psk"
    )


def _line(name: str, identity: Identity, *, signs: bool) -> str:
    """The line of a party for the cluster file, or of a driver, who signs no record."""
    is_plain = name.isidentifier() and yaml.safe_load(name) == name  # not: 12, 1e3, on, null
    written = name if is_plain else json.dumps(name)
    fields = f'name: {written}, public_key: "{format_public_key(identity.public_key)}"'
    if signs:
        fields += f', signing_key: "{format_signing_key(SigningKey(identity).public_key)}"'
    return f"{{{fields}}}"


def show_fingerprints(
    identity: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your key file; otherwise REDISLINK_IDENTITY_FILE.",
            show_default=False,
        ),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Cluster file; otherwise REDISLINK_CLUSTER_FILE.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Verbose = False,
) -> None:
    """Show the fingerprints of your own key and of each party's key in the cluster file.

    Compare them by telephone, each party reading out its own. If all agree, nobody has replaced a
    key in the file.
    """
    settings = RedisLinkSettings.load()
    key_file, path = identity or settings.identity_file_of(), cluster or settings.cluster_file
    if key_file is None and path is None:
        raise ConfigError(
            "nothing to show: give --identity FILE or --cluster FILE, or set "
            "REDISLINK_IDENTITY_FILE or REDISLINK_CLUSTER_FILE"
        )
    own = None if key_file is None else Identity.load(key_file).public_key
    spec = None if path is None else load_cluster(path)
    told = _fingerprints(own, spec)
    if as_json:
        typer.echo(json.dumps(told))
    else:
        _print_fingerprints(told)


def _fingerprints(own: bytes | None, spec: ClusterSpec | None) -> dict[str, Any]:
    keys = {
        party.name: party.public_key and parse_public_key(party.public_key)
        for party in (spec.parties if spec is not None else ())
    }
    drivers = {
        driver.name: parse_public_key(driver.public_key)
        for driver in ((spec.drivers if spec is not None else None) or ())
    }
    everybody = keys | drivers
    return {
        "own": own and fingerprint(own),
        "own_party": next((name for name, key in everybody.items() if own and key == own), None),
        "session": spec and spec.session,
        "security": spec and spec.security,
        "digest": spec and spec.digest().hex(),
        "parties": [
            {"name": name, "fingerprint": key and fingerprint(key)} for name, key in keys.items()
        ],
        "drivers": [
            {"name": name, "fingerprint": fingerprint(key)} for name, key in drivers.items()
        ],
        "devices": {name: whom_it_trusts(spec, name) for name in spec.devices} if spec else {},
    }


def _print_fingerprints(told: dict[str, Any]) -> None:
    rows = [
        (name, shown or "no public_key", what + ("own" if name == told["own_party"] else ""))
        for what, who in (("", "parties"), ("driver ", "drivers"))
        for name, shown in ((each["name"], each["fingerprint"]) for each in told[who])
    ]
    if told["own"] and not told["own_party"]:
        rows.append(("(own)", told["own"], "not in the cluster file" if rows else ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        show(line.rstrip())
    if told["session"]:
        show(
            f"session {told['session']}, security {told['security']}, "
            f"digest {told['digest'][:_DIGEST_DIGITS]} (the same at every party, or they refuse "
            "each other)"
        )
    for device, trusts in told["devices"].items():
        show(f"device {device}: {trusts}")
