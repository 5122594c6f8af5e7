"""Links of a program through the sidecar beside it: of SPU, of SecretFlow's ``fed``, of RayFed.

``redislink sidecar -- COMMAND`` puts this file on the command's path, and a ``sitecustomize`` that
calls `install` once a module is imported. It needs neither redislink nor anything else: Python 3.8
or later.

- ``libspu.link.create_brpc`` gives a *blackbox* link: an HTTP client of the sidecar, so this
  process listens on nothing. The description's parties must be those of the cluster file.
- SecretFlow's ``fed`` (``ray_mode=False``) and RayFed send their objects through the sidecar.
- If a link fails, a call that begins later raises ``RuntimeError``. A call that is in the middle of
  SPU's C++ cannot be interrupted: the process ends, with code 4, as it ends with brpc.
- A process that ends tells the sidecar how, so that the other parties hear of a failure at once.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.client
import importlib
import json
import os
import socket
import sys
import threading
import weakref
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple
from urllib.parse import urlencode

ADDRESS = "REDISLINK_SIDECAR"
TOKEN = "REDISLINK_SIDECAR_TOKEN"  # noqa: S105 - the name of a variable
_PATIENCE = 2.0
"""Seconds that a call in C++ may go on once its link has failed."""
_HTTP_TIMEOUT_MS = 120_000
"""Of one request of SPU: a push waits in the sidecar while the peer has too much to take."""
_POLL = 5.0
_CODE = 4


class SidecarError(RuntimeError):
    """The sidecar cannot be reached, refused a request, or says that a link has failed."""


def _say(text: str) -> None:
    print(f"redislink: {text}", file=sys.stderr, flush=True)


class Sidecar:
    """This process's line to the sidecar."""

    def __init__(self, address: str, token: str) -> None:
        """Args:
        address: ``host:port``.
        token: what it wants to see in each request.
        """
        self.address = address
        self.token = token
        self._connections = threading.local()
        self._tell_of: Dict[int, Callable[[str, bool], None]] = {}
        self._line: Any = self._enter()
        first = json.loads(self._line.readline())
        self.party: str = first["party"]
        self._client = first["client"]
        thread = threading.Thread(target=self._listen, name="redislink-sidecar", daemon=True)
        thread.start()

    def make_link(
        self,
        name: str,
        parties: Sequence[Tuple[str, str]],
        rank: int,
        tell: Callable[[str, bool], None],
    ) -> Tuple[int, List[str]]:
        """Make this party's end of a link. Waits until all its parties have come.

        Args:
            name: what tells it from other links of these parties.
            parties: names and addresses, in rank order.
            rank: this party's.
            tell: called with a line and whether the link has failed, from another thread.

        Returns:
            The link's number, and what the sidecar calls its parties.
        """
        asked = {"client": self._client, "id": name, "parties": list(parties), "rank": rank}
        made = self._ask("/v1/links", asked)
        self._tell_of[made["link"]] = tell
        return made["link"], made["parties"]

    def release(self, link: int) -> None:
        """Say that this process has dropped a link."""
        self._tell_of.pop(link, None)
        with contextlib.suppress(Exception):
            self._ask(f"/v1/links/{link}/release", {})

    def send(self, link: int, peer: str, tag: str, message: bytes) -> None:
        """Send a message with a tag."""
        query = urlencode({"to": peer, "tag": tag})
        self._check(*self._request(f"/v1/links/{link}/send?{query}", message))

    def recv(self, link: int, peer: str, tag: str) -> bytes:
        """Wait for the message with a tag, for as long as it may come."""
        query = urlencode({"from": peer, "tag": tag, "timeout": _POLL})
        while True:
            status, said = self._request(f"/v1/links/{link}/recv?{query}", b"")
            if status != 204:
                self._check(status, said)
                return said

    def end(self, failed: str) -> None:
        """Say how this process ends.

        Args:
            failed: why; empty: it ends well.
        """
        with contextlib.suppress(Exception):
            self._ask(f"/v1/clients/{self._client}/end", {"failed": failed})

    def hang_up(self) -> None:
        """Close the line, which the sidecar takes for the end of this process."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """In the child of a fork: the line is the parent's, and ends with the parent.

        Nothing but the descriptor can be closed: the thread that held the reader's lock is gone.
        """
        _forgotten.append(self)  # else their destructors would close the number once more
        with contextlib.suppress(OSError):
            os.close(self._socket.fileno())

    def _enter(self) -> Any:
        # Ray ends its actors without a word; they have not failed.
        lasting = "RAY_RAYLET_PID" in os.environ
        body = json.dumps({"pid": os.getpid(), "lasting": lasting})
        try:
            connection = http.client.HTTPConnection(self.address)
            connection.request("POST", "/v1/clients", body, {"x-ptp-token": self.token})
            self._socket = connection.sock
            answer = connection.getresponse()
        except OSError as error:
            raise SidecarError(
                f"the sidecar at {self.address} cannot be reached ({error}): check that "
                "redislink sidecar runs"
            ) from error
        if answer.status != 200:
            self._check(answer.status, answer.read())
        return answer

    def _listen(self) -> None:
        try:
            for line in self._line:
                told = json.loads(line)
                tell = self._tell_of.get(told["link"])
                if tell is not None:
                    tell(told["text"], told["failed"])
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass
        for tell in list(self._tell_of.values()):
            tell(f"the sidecar of {self.party} has ended: see its output", True)

    def _ask(self, path: str, content: Dict[str, Any]) -> Dict[str, Any]:
        status, said = self._request(path, json.dumps(content).encode())
        self._check(status, said)
        result: Dict[str, Any] = json.loads(said)
        return result

    def _request(self, path: str, body: bytes) -> Tuple[int, bytes]:
        connection = getattr(self._connections, "it", None)
        if connection is None:
            connection = self._connections.it = http.client.HTTPConnection(self.address)
        try:
            connection.request("POST", path, body, {"x-ptp-token": self.token})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise SidecarError(
                f"the sidecar at {self.address} does not answer ({error}): see its output"
            ) from error

    @staticmethod
    def _check(status: int, said: bytes) -> None:
        if status not in (200, 204):
            try:
                text = json.loads(said)["error"]
            except (ValueError, KeyError, TypeError):
                text = f"it answered {status}: is this the sidecar's address?"
            raise SidecarError(text)


_forgotten: List[Sidecar] = []
_sidecar: Optional[Sidecar] = None
_sidecar_lock = threading.Lock()
_ended_by: List[str] = []


def sidecar() -> Sidecar:
    """The line to the sidecar that the environment names; made when it is first needed."""
    global _sidecar
    with _sidecar_lock:
        if _sidecar is None:
            address, token = os.environ.get(ADDRESS), os.environ.get(TOKEN, "")
            if not address:
                raise SidecarError(f"{ADDRESS} is not set: start this with redislink sidecar")
            _sidecar = Sidecar(address, token)
            _say_when_it_ends()
        return _sidecar


def _say_when_it_ends() -> None:
    import multiprocessing.util

    # The children of multiprocessing run these, and not atexit's; nobody runs both twice.
    once = functools.lru_cache(None)(_end)
    atexit.register(once)
    multiprocessing.util.Finalize(None, once, exitpriority=0)
    before = sys.excepthook

    def note(kind: Any, error: Any, trace: Any) -> None:
        _ended_by.append(kind.__name__)
        before(kind, error, trace)

    sys.excepthook = note


def _end() -> None:
    here = _sidecar
    if here is None:
        return
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit):
        failed = "" if error.code in (None, 0) else "exited with an error"
    elif error is not None:
        failed = f"{type(error).__name__} in its program"
    else:
        failed = f"{_ended_by[-1]} in its program" if _ended_by else ""
    here.end(failed)


def _forget_in_child() -> None:
    global _sidecar, _sidecar_lock
    here, _sidecar = _sidecar, None
    _sidecar_lock = threading.Lock()
    _links.clear()
    _ended_by.clear()
    if here is not None:
        here.forget()


os.register_at_fork(after_in_child=_forget_in_child)


# -- SPU's links --------------------------------------------------------------------------------


class _Link:
    """What this process knows of one of SPU's links."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failure: Optional[str] = None
        self.left = False
        self._calls = 0
        self._lock = threading.Lock()

    def tell(self, text: str, failed: bool) -> None:
        _say(f"link {self.name}: {text}")
        if not failed:
            self.left = True
            return
        with self._lock:
            self.failure = text
            in_the_middle = self._calls
        if in_the_middle:
            threading.Timer(_PATIENCE, self._end_if_still).start()

    def _end_if_still(self) -> None:
        if self._calls:
            _say(f"link {self.name}: SPU still waits on it, so this process ends")
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(_CODE)

    def __enter__(self) -> None:
        with self._lock:
            if self.failure is not None:
                raise SidecarError(f"link {self.name}: {self.failure}")
            self._calls += 1

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._calls -= 1


_links: "weakref.WeakKeyDictionary[Any, _Link]" = weakref.WeakKeyDictionary()
"""By SPU's objects: contexts, and the runtimes on them."""
_environ_lock = threading.Lock()
_TAKEN_OVER = ("enable_ssl", "brpc_channel_protocol", "brpc_channel_connection_type", "link_type")
_said: List[str] = []


def _hook_libspu(libspu: Any) -> None:
    """Make ``create_brpc`` of this module give links through the sidecar."""
    link = libspu.link
    create = link.create_brpc

    @functools.wraps(create)
    def create_brpc(desc: Any, self_rank: int, **options: Any) -> Any:
        return _create(create, desc, int(self_rank), options)

    link.create_brpc = create_brpc
    for name in ("all_gather", "barrier", "broadcast", "gather", "scatter", "recv", "send",
                 "send_async", "spawn", "stop_link"):  # fmt: skip
        if hasattr(link.Context, name):
            setattr(link.Context, name, _watched(getattr(link.Context, name), name))
    runtime = getattr(libspu, "RuntimeWrapper", None)
    for name in ("__init__", "Run"):
        if runtime is not None:
            setattr(runtime, name, _watched(getattr(runtime, name), name))


def _hook_libpsi(libpsi: Any) -> None:
    """Watch calls that take a link."""
    for module in (libpsi, getattr(libpsi, "libs", None)):
        for name, value in list(vars(module).items()) if module is not None else ():
            if callable(value) and not isinstance(value, type) and not name.startswith("_"):
                setattr(module, name, _watched(value, name))


def _watched(function: Any, name: str) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        found = [_links.get(value) for value in (*args, *options.values()) if _is_key(value)]
        link = next((each for each in found if each is not None), None)
        if link is None:
            return function(*args, **options)
        if name == "stop_link" and (link.left or link.failure is not None):
            return None  # SPU's would wait for the peer for ever
        with link:
            result = function(*args, **options)
        if name == "spawn":
            _links[result] = link
        elif name == "__init__":
            _links[args[0]] = link
        return result

    return call


def _is_key(value: Any) -> bool:
    return type(value).__name__ in ("Context", "RuntimeWrapper")


def _create(create: Any, desc: Any, rank: int, options: Dict[str, Any]) -> Any:
    if not hasattr(desc, "link_type"):
        raise SidecarError("this spu has no blackbox links: install spu 0.9.4 or later")
    here = sidecar()
    parties = [(party.id, party.host) for party in desc.parties]
    if desc.enable_ssl and "ssl" not in _said:
        _said.append("ssl")
        _say("the description's TLS is not used: redislink seals between the parties")
    known = _Link(desc.id)
    number, called = here.make_link(desc.id, parties, rank, known.tell)
    before = {name: getattr(desc, name) for name in (*_TAKEN_OVER, "http_timeout_ms")}
    desc.enable_ssl = False
    desc.link_type = "blackbox"
    desc.brpc_channel_protocol = "http"
    desc.brpc_channel_connection_type = "pooled"
    desc.http_timeout_ms = max(desc.http_timeout_ms, _HTTP_TIMEOUT_MS)
    try:
        with _environ_lock:  # SPU reads the environment while it makes the link
            os.environ.update(
                {
                    "system.transport": here.address,
                    "config.trace_id": "redislink",
                    "config.token": here.token,
                    "config.session_id": str(number),
                    **{f"config.inst_id.{name}": p for (name, _), p in zip(parties, called)},
                }
            )
            context = create(desc, rank, **options)
    except BaseException:
        here.release(number)
        raise
    finally:
        for name, value in before.items():
            setattr(desc, name, value)
    _links[context] = known
    weakref.finalize(context, here.release, number).atexit = False
    return context


# -- objects of SecretFlow's fed and of RayFed --------------------------------------------------


class _Objects:
    """Objects between the parties of a job: a link of the sidecar, without SPU."""

    def __init__(
        self,
        kind: str,
        job: str,
        parties: Sequence[str],
        party: str,
        line: Optional[Sidecar] = None,
    ) -> None:
        self._sidecar = line or sidecar()
        names = sorted(parties)
        self._link, called = self._sidecar.make_link(
            f"{kind} {job}", [(name, "") for name in names], names.index(party), self._tell
        )
        self._called = dict(zip(names, called))

    def _tell(self, text: str, _failed: bool) -> None:
        _say(text)  # `send` and `recv` raise it

    def send(self, peer: str, tag: str, message: bytes) -> None:
        self._sidecar.send(self._link, self._called[peer], tag, message)

    def recv(self, peer: str, tag: str) -> bytes:
        return self._sidecar.recv(self._link, self._called[peer], tag)

    def close(self) -> None:
        self._sidecar.release(self._link)


Open = Callable[[str, str, Sequence[str], str], Any]
"""Opens the line for the objects of a job: kind, job, parties, this party."""


def make_fed_proxy(base: Any, pickling: Any, open_: Open = _Objects) -> Any:
    """The class for SecretFlow's ``fed`` that sends objects over a line.

    Args:
        base: its ``SenderReceiverProxy``.
        pickling: its ``secure_pickle``.
        open_: makes the line.
    """

    class RedisLinkProxy(base):  # type: ignore[misc]
        """Sends SecretFlow's objects, pickled as SecretFlow pickles them, through redislink."""

        def __init__(self, *args: Any, **options: Any) -> None:
            names = ("addresses", "party", "job_name", "tls_config", "proxy_config")
            given = {**dict(zip(names, args)), **options}
            self._objects: Any = None
            party = given.get("party", given.get("self_party"))
            super().__init__(
                given["job_name"], given["addresses"], party, given.get("tls_config"), None
            )

        def start(self) -> None:
            self._objects = open_("fed", self._job_name, list(self._addresses), self._party)

        def concurrent(self) -> bool:
            return True

        def send(self, dest_party: str, data: Any, seq_id: Optional[int]) -> bool:
            self._objects.send(dest_party, str(seq_id), pickling.dumps(data))
            return True

        def recv(self, src_party: str, seq_id: Optional[int]) -> Any:
            message = self._objects.recv(src_party, str(seq_id))
            return pickling.loads(message, filter_type=pickling.FilterType.BLACKLIST)

        def stop(self) -> None:
            if self._objects is not None:
                self._objects.close()
                self._objects = None

    return RedisLinkProxy


def make_rayfed_proxy(base: Any, open_: Open = _Objects) -> Any:
    """The class for RayFed's ``receiver_sender_proxy_cls``.

    Args:
        base: its ``SenderReceiverProxy``.
        open_: makes the line.
    """

    class RedisLinkProxy(base):  # type: ignore[misc]
        """Sends RayFed's objects, cloudpickled as RayFed does, through redislink."""

        def __init__(
            self, addresses: Any, self_party: str, tls_config: Any = None, proxy_config: Any = None
        ) -> None:
            super().__init__(addresses, self_party, tls_config, proxy_config)
            self._objects: Any = None
            self._error = ""
            self._is_open = threading.Event()

        def start(self) -> None:
            try:
                self._objects = open_("rayfed", "job", list(self._addresses), self._party)
            except Exception as error:  # noqa: BLE001 - `is_ready` gives it to the program
                self._error = str(error)
            self._is_open.set()

        def is_ready(self) -> Tuple[bool, str]:
            self._is_open.wait()
            return not self._error, self._error

        def send(
            self, dest_party: str, data: Any, upstream_seq_id: Any, downstream_seq_id: Any
        ) -> Any:
            import cloudpickle

            tag = f"{upstream_seq_id}:{downstream_seq_id}"
            self._objects.send(dest_party, tag, cloudpickle.dumps(data))
            return True

        def get_data(self, src_party: str, upstream_seq_id: Any, curr_seq_id: Any) -> Any:
            import cloudpickle

            message = self._objects.recv(src_party, f"{upstream_seq_id}:{curr_seq_id}")
            limits = importlib.import_module("fed._private.serialization_utils")
            limits._apply_loads_function_with_whitelist()
            return cloudpickle.loads(message)

        def stop(self) -> None:  # some versions call it
            if self._objects is not None:
                self._objects.close()
                self._objects = None

    return RedisLinkProxy


def _hook_secretflow(api: Any) -> None:
    base = importlib.import_module("secretflow.distributed.fed.proxy.base")
    pickling = importlib.import_module("secretflow.utils.secure_pickle")
    api.GrpcProxy = api.BrpcLinkProxy = make_fed_proxy(base.SenderReceiverProxy, pickling)


class RayFedProxy:
    """For ``fed.init(receiver_sender_proxy_cls=RayFedProxy)``: the class for the installed RayFed.

    Ray's workers find it by its name, so it must not depend on how this process was set up.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        base = importlib.import_module("fed.proxy.base_proxy").SenderReceiverProxy
        return make_rayfed_proxy(base)(*args, **options)


def _hook_rayfed(api: Any) -> None:
    init = api.init

    @functools.wraps(init)
    def with_proxy(*args: Any, **options: Any) -> Any:
        options.setdefault("receiver_sender_proxy_cls", RayFedProxy)
        config = options["config"] = dict(options.get("config") or {})
        comm = config["cross_silo_comm"] = dict(config.get("cross_silo_comm") or {})
        comm.setdefault("max_concurrency", 100)  # its default, one call at a time, blocks itself
        return init(*args, **options)

    api.init = with_proxy


# -- installation -------------------------------------------------------------------------------

_HOOKS: Dict[str, Callable[[Any], None]] = {
    "spu.libspu": _hook_libspu,
    "spu.libpsi": _hook_libpsi,
    "secretflow.distributed.fed.api": _hook_secretflow,
    "fed.api": _hook_rayfed,
}


def install(module: Any) -> None:
    """Have the links or objects of a module go through the sidecar.

    Args:
        module: one of those above, just imported.
    """
    _HOOKS[module.__name__](module)
