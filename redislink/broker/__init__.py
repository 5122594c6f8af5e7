"""The only code that speaks Redis: connections, the outbox (RPUSH), the inbox (BLPOP).

redis-py's exceptions end here: this package raises only `redislink.errors.BrokerError`.
"""

from redislink.broker.broker import Broker
from redislink.broker.cluster_outbox import AnyOutbox, make_outbox
from redislink.broker.embedded import EmbeddedBroker
from redislink.broker.inbox import Inbox
from redislink.broker.outbox import Outbox
from redislink.broker.proxy import EgressProxy
from redislink.broker.several import SeveralBrokers, make_broker

__all__ = [
    "AnyOutbox",
    "Broker",
    "EgressProxy",
    "EmbeddedBroker",
    "Inbox",
    "Outbox",
    "SeveralBrokers",
    "make_broker",
    "make_outbox",
]
