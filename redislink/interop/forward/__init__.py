"""TCP streams through a session: what ``redislink forward`` does.

`streams` is the protocol, and touches no socket; `places` says where a forwarder may listen and
what it may connect to; `pipes` carries bytes between a socket and a stream; `link` holds the
session with one other party; `forwarder` puts them together.
"""
