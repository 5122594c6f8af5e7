"""Draws docs/images/top.svg: ``redislink top`` while three parties run, one of them slow.

``python docs/make_top_image.py`` starts a broker and three parties, lets them train a model on SPU for
some seconds, and writes what the command shows then, with the tags that SPU gives its messages.
"""

from __future__ import annotations

import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from redislink import (
    ClusterSpec,
    Endpoint,
    RedisLinkError,
    RedisLinkSettings,
    Session,
    connect,
)
from redislink.broker import Broker, EmbeddedBroker
from redislink.cli.top import screen
from redislink.identity.keypair import Identity, format_public_key
from redislink.operate.survey import Survey
from redislink.operate.watch import Reading, Watch

FILE = Path(__file__).parent / "images" / "top.svg"
NAMES = ("alice", "bob", "carol")
SECONDS = 15.0
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
            "devices": {
                "SP0": {"kind": "SPU", "members": list(NAMES), "config": {"protocol": "ABY3"}}
            },
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
    """A logistic regression, of which carol takes her time over each step."""
    generator = np.random.default_rng(1)
    data = generator.standard_normal((20_000, 10), np.float32)
    try:
        session = Session.from_endpoint(endpoint)
        sp = session.spu("SP0")
        x = sp.private(lambda: data, owner="alice")
        y = sp.private(lambda: (data[:, 0] > 0).astype(np.float32), owner="bob")
        weights = sp.run(lambda: jnp.zeros(data.shape[1]))()
        train = sp.run(step)
        while not stop.is_set():
            weights = train(x, y, weights)
            if endpoint.party == "carol":
                stop.wait(0.4)
    except RedisLinkError:
        pass  # another stopped first


def step(x: Any, y: Any, weights: Any) -> Any:
    """One step of gradient descent."""
    error = jax.nn.sigmoid(x @ weights) - y
    return weights - error @ x / y.shape[0]


if __name__ == "__main__":
    main()
