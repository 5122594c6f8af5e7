"""Draws docs/images/top.svg: ``redislink top`` while three parties run, one of them slow.

``python docs/make_top_image.py`` starts a broker and three parties, lets them exchange messages
over a real session for some seconds, and writes what the command shows then.
"""

from __future__ import annotations

import io
import itertools
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from redislink import ClusterSpec, Endpoint, RedisLinkError, RedisLinkSettings, connect
from redislink.broker import Broker, EmbeddedBroker
from redislink.cli.top import screen
from redislink.identity.keypair import Identity, format_public_key
from redislink.operate.survey import Survey
from redislink.operate.watch import Reading, Watch

FILE = Path(__file__).parent / "images" / "top.svg"
NAMES = ("alice", "bob", "carol")
SECONDS = 6.0
WIDTH = 118


def main() -> None:
    """Run the parties, take the picture."""
    with EmbeddedBroker() as server:
        reading = reading_of_a_run(server.url)
    # The port of a trial says nothing.
    shown = replace(reading, broker="redis://broker:6379/0")
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(screen(shown))
    FILE.parent.mkdir(exist_ok=True)
    svg = console.export_svg(title="redislink top", unique_id="top")
    # Without the fonts that it would have viewers load from the network.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    FILE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


def reading_of_a_run(url: str) -> Reading:
    """Two readings of a run, the first to have something to compare the second with."""
    identities = {name: Identity.generate() for name in NAMES}
    cluster = ClusterSpec.parse(
        {
            "session": "hospitals",
            "broker": url,
            "parties": [
                {"name": name, "public_key": format_public_key(identities[name].public_key)}
                for name in NAMES
            ],
        }
    )
    settings = RedisLinkSettings(_env_file=None)
    survey = Survey(Broker(url))
    watch = Watch(survey, cluster.session, NAMES)
    stop = threading.Event()

    def run(name: str) -> None:
        with connect(cluster, name, settings, identity=identities[name]) as endpoint:
            work(endpoint, stop)

    with ThreadPoolExecutor(len(NAMES)) as pool:
        parties = [pool.submit(run, name) for name in NAMES]
        time.sleep(SECONDS)
        watch.read()
        time.sleep(1.5)
        reading = watch.read()
        stop.set()
        for party in parties:
            party.exception()  # the first to stop leaves the others waiting: that is no matter
    survey.close()
    return reading


def work(endpoint: Endpoint, stop: threading.Event) -> None:
    """Rounds in which every party sends to every other; carol takes 4 s over each of hers."""
    others = [name for name in NAMES if name != endpoint.party]
    side = threading.Thread(target=exchange, args=(endpoint, stop))
    if endpoint.party != "carol":
        side.start()
    try:
        for number in itertools.count(1):
            if endpoint.party == "carol":
                stop.wait(4.0)
            if stop.is_set():
                break
            for other in others:
                endpoint.send(other, f"round-{number}:gather", bytes(200_000))
            for other in others:
                endpoint.recv(other, f"round-{number}:gather", timeout=20)
    except RedisLinkError:
        pass  # another stopped first
    if endpoint.party != "carol":
        side.join()


def exchange(endpoint: Endpoint, stop: threading.Event) -> None:
    """What alice and bob do meanwhile, between themselves."""
    peer = "bob" if endpoint.party == "alice" else "alice"
    for number in itertools.count(1):
        if stop.wait(0.005):
            return
        try:
            endpoint.send(peer, f"AB:{number}", bytes(20_000))
            endpoint.recv(peer, f"AB:{number}", timeout=20)
        except RedisLinkError:
            return


if __name__ == "__main__":
    main()
