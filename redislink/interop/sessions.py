"""The session of one link among many: a program may make links as it likes, each has its own.

Rule: all parties derive the same session from what names the link, without a message. It is named
as a job's session is, so that the users of ``redislink acl`` have the rights for it already.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b32encode
from collections.abc import Sequence

from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.jobs.offer import job_session


def cluster_of_link(cluster: ClusterSpec, parties: Sequence[str], *name: str) -> ClusterSpec:
    """The cluster of a link's own session. It has no devices and no drivers.

    Args:
        cluster: the cluster file: its keys, its broker, its security.
        parties: the parties of the link, in the order of their ranks there.
        name: what tells the link from others of these parties, the same at all of them.

    Raises:
        ConfigError: a party is not in the cluster file, or is named twice; there is only one; or
            the session's name is too long.
    """
    ranks = [cluster.rank(party) for party in parties]
    if len(set(ranks)) < max(2, len(ranks)):
        raise ConfigError(
            f"a link needs at least two parties, each once, and not {', '.join(parties) or 'none'}:"
            " check the parties that the program names"
        )
    content = cluster.model_dump(mode="json", exclude_unset=True, exclude={"drivers", "devices"})
    named = json.dumps([list(parties), list(name)]).encode()
    digest = b32encode(hashlib.sha256(named).digest()).decode().lower()[:12]
    session = job_session(cluster.session, f"j{digest}")
    parts = [content["parties"][rank] for rank in ranks]
    return ClusterSpec.parse(content | {"session": session, "parties": parts}, f"link {name}")
