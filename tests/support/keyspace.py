"""A database that redislink shares with others: their keys, and how a database compares."""

from __future__ import annotations

from typing import Any

from redislink.broker import Broker
from redislink.broker.wire import LISTING

Content = dict[bytes, tuple[bytes, int]]
"""By key: its serialized value, and what is left of its life in ms (-1: it has no end)."""


def run(url: str, *command: bytes | int | str | float) -> Any:
    """The reply to one command, on a connection of its own; in a Cluster, to its key's node."""
    key = command[1] if len(command) > 1 else b""
    connection = Broker(url).at(key if isinstance(key, bytes) else str(key).encode()).open()
    try:
        return connection.execute(*command, timeout=5, most=LISTING)  # type: ignore[arg-type]
    finally:
        connection.close()


def add_foreign_keys(url: str, session: str, inbox: str) -> list[bytes]:
    """Keys of every type that are none of this session's, many of which look as if they were."""
    base = f"rl:{{{session}"
    lists = [
        *(b"rl", b"rl:", b"rl:{", b"list", "rl:{other:bob}:alice:0:!hello", "rl:{other:bob}:a:0:t"),
        *(f"{base}X:bob}}:alice:0:!hello", f"{base}X:bob}}:alice:0123456789abcdef:t"),
        *(base, f"{base}:", f"{base}:{inbox}", f"{base}:{inbox}}}", f"{base}:{inbox}}}:"),
        *(f"{base}:{inbox}}}:alice", f"{base}:{inbox}}}:alice:0", f"{base}:{inbox}}}:alice:1:t"),
        *(f"x{base}:{inbox}}}:alice:0:t", f"RL:{{{session}:{inbox}}}:alice:0:t", f" {base}:a"),
        *(f"{base}:{inbox}}}:alice:0:t[u", f"{base}:{inbox}}}:alice:0:!other", f"{base}}}:a:b:0:t"),
        f"rl:{{x{session}:bob}}:alice:0:t",
        f"{base}:{inbox}}}:alice:0:%3a",
    ]
    commands: list[tuple[bytes | int | str | float, ...]] = [
        ("RPUSH", k, b"a", b"b") for k in lists
    ]
    # Names that are this session's to the letter, with what redislink never puts there.
    named = f"{base}:{inbox}}}:alice:0:t"
    for number, words in enumerate(
        (
            ("SET", "x"),
            ("HSET", "f", "x"),
            ("SADD", "x"),
            ("ZADD", 1.5, "x"),
            ("XADD", "1-1", "f", "x"),
            ("PFADD", "x"),
            ("GEOADD", 13.4, 52.5, "x"),
            ("SETBIT", 7, 1),
        )
    ):
        places = (f"{named}{number}", f"type-{number}", f"rl:{number}")
        commands += [(words[0], place, *words[1:]) for place in places]
    own = f"{base}:{inbox}}}:{inbox}:0:"
    commands += [("HSET", own + tag, "f", "x") for tag in ("!claim", "!status")]
    commands.append(("SET", "with an end", "x", "PX", 1_000_000))
    if Broker(url).is_cluster:
        for command in commands:
            run(url, *command)
    else:
        connection = Broker(url).open()
        for command in commands:
            connection.execute(*command, timeout=5, most=LISTING)  # type: ignore[arg-type]
        connection.close()
    return [c[1] if isinstance(c[1], bytes) else str(c[1]).encode() for c in commands]


def content_of(url: str) -> Content:
    """All of a database; of a Cluster, all of every node."""
    broker = Broker(url)
    servers = [broker.on(place) for place in broker.masters()] if broker.is_cluster else [broker]
    found: Content = {}
    for server in servers:
        connection = server.open()
        for name in connection.execute("KEYS", "*", timeout=5, most=LISTING):
            value = connection.execute("DUMP", name, timeout=5, most=LISTING)
            ttl = connection.execute("PEXPIRETIME", name, timeout=5)
            if value is not None:
                found[name] = (bytes(value), ttl)
        connection.close()
    return found
