"""``redislink broker``: the embedded broker in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redislink.cli.errors import Verbose, say, show
from redislink.cli.termination import sigterm_interrupts
from redislink.errors import BrokerUnreachable, ConfigError

_DEFAULT_PORT = 6379
_MOST_BYTES = 64 << 10


def broker(
    port: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=65535, help="Loopback port; 0 chooses a free one."),
    ] = _DEFAULT_PORT,
    password: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Password of the default user. Other users of this machine can see it: prefer "
            "--password-file.",
            show_default=False,
        ),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File whose first line is the password.", show_default=False
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Run a Valkey server on this machine's loopback, in memory only, until Ctrl-C or SIGTERM.

    Prints its URL, without a password. Use it for trials on one machine; organisations need a Redis
    or Valkey server that all of them can reach.
    """
    # Loads the server binary's package.
    from redislink.broker import EmbeddedBroker
    from redislink.broker.credentials import read_password

    if password_file is not None:
        if password is not None:
            raise ConfigError("give --password or --password-file, not both")
        password = read_password(password_file)
    if password == "":
        raise ConfigError("the password is empty: give one, or leave out the option")

    try:
        with sigterm_interrupts(), EmbeddedBroker(port=port, password=password) as server:
            show(f"redis://127.0.0.1:{server.port}/0")
            say(f"broker runs (pid {server.pid}{', with password' if password else ''}); "
                "Ctrl-C stops it and drops all it holds")  # fmt: skip
            server.wait()
            raise BrokerUnreachable("the broker's process ended by itself: start it again")
    except KeyboardInterrupt:
        say("broker stopped")
