"""`ClusterOutbox` is used as an `Outbox` is; how it follows a Cluster is in test_topology.py."""

from __future__ import annotations

import inspect

from redislink.broker import Outbox
from redislink.broker.cluster_outbox import ClusterOutbox


def test_it_is_called_as_an_outbox_is() -> None:
    names = {name for name in vars(Outbox) if not name.startswith("_")}
    assert {"push", "error", "flush"} < names
    assert {name for name in vars(ClusterOutbox) if not name.startswith("_")} == names
    for name in names:
        one, other = vars(Outbox)[name], vars(ClusterOutbox)[name]
        assert isinstance(other, property) is isinstance(one, property)
        if not isinstance(one, property):
            assert inspect.signature(other) == inspect.signature(one)
