"""The sidecar: a service beside an SPU that has no `IChannel`, such as spu 0.9 on Python 3.10.

Such an SPU has *blackbox* links: it is an HTTP client of a transport service and listens on
nothing. The sidecar is that service, in a process and an interpreter of its own, and carries the
messages through the broker.

    SPU ── HTTP on loopback ── sidecar ── broker ── sidecar ── HTTP on loopback ── SPU

`blackbox` has that service's messages, `link` carries those of one link over an endpoint, `links`
keeps all links of a sidecar, `server` answers requests, and ``shim/`` is what the program beside
it imports.
"""
