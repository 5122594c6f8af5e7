"""`connect`: from settings to an `Endpoint` that has joined its session."""

from __future__ import annotations

from pathlib import Path

from redislink import native
from redislink.broker import Broker, Inbox, Outbox, SeveralBrokers, make_broker, make_outbox
from redislink.broker.credentials import CredentialsCallable
from redislink.broker.outage import LONGEST_PAUSE, SHORT_PAUSE, Outage
from redislink.broker.users import owner_of_user
from redislink.cluster import ClusterSpec, load_cluster
from redislink.cluster.trust import REMEDY, warnings
from redislink.errors import BrokerPermissionError, ConfigError, UsageError
from redislink.identity.keypair import Identity
from redislink.logs import PartyLogger
from redislink.observe.observers import Observers
from redislink.protocol import list_names
from redislink.protocol.status import encode_status
from redislink.settings import RedisLinkSettings
from redislink.transport.claim import PartyClaim, Run
from redislink.transport.core import Core
from redislink.transport.endpoint import Endpoint
from redislink.transport.party_status import status_before_meeting, status_of
from redislink.transport.rendezvous import Progress, Rendezvous
from redislink.transport.security import make_handshake
from redislink.transport.several import AnyClaim, SeveralClaims


def connect(
    cluster: ClusterSpec | str | Path | None = None,
    party: str | None = None,
    settings: RedisLinkSettings | None = None,
    *,
    on_progress: Progress | None = None,
    broker: Broker | None = None,
    identity: Identity | None = None,
    credentials: CredentialsCallable | None = None,
) -> Endpoint:
    """Join a session. Returns once every pair of parties has said hello.

    Args:
        cluster: the cluster, or the path of its file; None means ``REDISLINK_CLUSTER_FILE``.
        party: the party that this process runs as; None means ``REDISLINK_PARTY``.
        settings: this party's settings; None reads the environment and ``.env``.
        on_progress: called about once a second while parties are missing, with their names
            and the seconds waited so far.
        broker: the broker to use; None means the one in the settings or the cluster file.
        identity: this party's key pair; None reads ``REDISLINK_IDENTITY_FILE``.
        credentials: returns the broker's password, or user and password, to use instead of those
            in the URL. It is called for each new connection, from any thread, so they may change
            during a run.

    Raises:
        ConfigError: the cluster, party, settings or identity are wrong.
        UsageError: both ``broker`` and ``credentials`` were passed.
        BrokerError: the broker cannot be reached, or refuses this party.
        PartyTaken: another process already runs as this party.
        ClusterMismatch: a peer runs with another cluster file.
        HandshakeTimeout: not every party joined within ``connect_timeout``; the message names
            those that are missing.
    """
    return connect_run(
        Run(),
        cluster,
        party,
        settings,
        on_progress=on_progress,
        broker=broker,
        identity=identity,
        credentials=credentials,
    )


def connect_run(
    run: Run,
    cluster: ClusterSpec | str | Path | None,
    party: str | None,
    settings: RedisLinkSettings | None,
    *,
    on_progress: Progress | None = None,
    broker: Broker | None = None,
    identity: Identity | None = None,
    credentials: CredentialsCallable | None = None,
) -> Endpoint:
    """`connect`, as a run that may know of the one before it.

    Args:
        run: what tells this run from others.
        cluster, party, settings, on_progress, broker, identity, credentials: as for `connect`.

    Raises: as `connect`.
    """
    settings = settings or RedisLinkSettings.load()
    native.use(settings.native)
    spec = resolve_cluster(cluster, settings)
    name = party or settings.party
    if name is None:
        raise ConfigError(
            "no party: pass one, or set REDISLINK_PARTY to one of " + ", ".join(spec.party_names)
        )
    spec.rank(name)
    if broker is not None and credentials is not None:
        raise UsageError("connect got broker and credentials: give the credentials to the broker")
    if broker is None:
        broker = make_broker(settings, spec.broker, credentials=credentials)
    handshake = make_handshake(spec, name, settings, identity, run.instance)
    who = f"party {name!r} of session {spec.session!r}"
    log = PartyLogger(spec.session, name)
    progress = PartyLogger(spec.session, name, "redislink.progress")
    outage = Outage(
        name,
        settings.broker_timeout,
        progress,
        log,
        broker.memory,
        longest_pause=SHORT_PAUSE if isinstance(broker, SeveralBrokers) else LONGEST_PAUSE,
        why=broker.why_none,
    )
    observers = Observers(settings, spec.session, name, spec.party_names)
    for warning in warnings(spec):
        log.warning("%s: %s: %s", name, warning, REMEDY)
    inboxes = {party: list_names.claim_key(spec.session, party) for party in spec.party_names}
    home = broker.at(inboxes[name])
    claim: AnyClaim
    if isinstance(broker, SeveralBrokers):
        move_after = settings.broker_move_after
        claim = SeveralClaims(broker, spec, name, run.instance, log, move_after, run.before)
    else:
        claim = PartyClaim(home, inboxes[name], run.instance, who, log, run.before)
    try:
        claim.acquire(outage, patient=settings.broker_wait)
    except BrokerPermissionError as error:
        observers.close()
        owner = owner_of_user(broker.user, spec.session, spec.party_names)
        if owner not in (None, name):
            raise BrokerPermissionError(
                f"{name}: permission denied, because this party logged in to broker {broker.label} "
                f"as {owner}'s user: set REDISLINK_BROKER_URL to the URL with {name}'s user"
            ) from error
        raise
    except BaseException:
        observers.close()
        raise
    marks = [list_names.mark_list(spec.session, p, name) for p in spec.party_names if p != name]
    outbox = make_outbox(broker, settings.list_ttl, inboxes.values(), marks)
    inbox = Inbox(home)
    rendezvous = Rendezvous(spec, name, handshake, outbox, inbox)
    if isinstance(claim, SeveralClaims) and isinstance(outbox, Outbox):
        claim.meet(rendezvous, outbox)
    status_key = list_names.status_key(spec.session, name)
    if settings.status:
        claim.publish(status_key, lambda: encode_status(status_before_meeting(claim, rendezvous)))
    try:
        rendezvous.meet(broker, settings.connect_timeout, outage, on_progress)
    except BaseException:
        inbox.close()
        outbox.close()
        claim.release()
        observers.close()
        raise
    ways = broker, outbox, inbox, rendezvous, outage
    core = Core(spec, name, settings, *ways, claim.round_trip, claim.uplink)
    sending, receiving = observers.ways(core)
    endpoint = Endpoint(sending, receiving, claim, observers)
    if isinstance(claim, PartyClaim) and broker.is_cluster:
        core.home = claim
    if isinstance(claim, SeveralClaims):
        claim.serve(core, endpoint.parts.control)
    observers.attach(endpoint, {peer: handshake.epoch(peer) for peer in rendezvous.peers})
    if settings.status:
        claim.publish(
            status_key,
            lambda: encode_status(status_of(core, claim, endpoint.resumed_steps, endpoint.streams)),
        )
    return endpoint


def resolve_cluster(
    cluster: ClusterSpec | str | Path | None, settings: RedisLinkSettings
) -> ClusterSpec:
    """The cluster that was passed to `connect`, or else the one that the settings name.

    Raises:
        ConfigError: neither names a cluster, or it is not valid.
    """
    if isinstance(cluster, ClusterSpec):
        return cluster
    return load_cluster(settings.cluster_file_to_use(cluster))
