"""`SpuDevice`: an SPU as one party of a session sees it, whether it is a member or not.

Rules:
- Every call is a step that all parties make, in the same order (`redislink.session.steps`).
- Only its owner, and the parties to whom it is revealed, have a value in the clear. In between it
  is an `SpuArray` handle: shape and dtype, which every party knows.
- Values that a function closes over, static arguments, and arguments that are plain numbers or
  arrays are public: they are compiled in, or passed to SPU as public. They must be equal
  everywhere; digests of them go to the other parties.
- A run sends no message of its own. The next message of a step proves that all ran the same.
- A step that the journal answers makes no link, loads and compiles nothing. Links, runtimes and
  contexts are then made by the first step that needs them, at all members in the same order.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import jax
import numpy as np
import spu
from spu import libspu

from redislink.cluster import DeviceSpec
from redislink.communicator import Communicator
from redislink.errors import ConfigError, LoadFailed, NotRevealed, UsageError
from redislink.session.journal import Recorded
from redislink.session.steps import Failure, Silence, Step, Steps
from redislink.spu.arrays import Array, as_array, columns_of, short
from redislink.spu.compiling import Compiled, Function, Kept, flatten, name_of, trace_function
from redislink.spu.link import SpuLink, runtime_config
from redislink.spu.pytrees import Unknown, count_leaves_untrusted, fill, take_apart
from redislink.spu.ranges import Ranges
from redislink.spu.recall import (
    damaged,
    error_again,
    error_given,
    handles_again,
    handles_given,
    values_again,
    values_given,
)
from redislink.spu.shares import Shape, ShareKind, kind_of, shape_untrusted, share_untrusted
from redislink.spu.variables import Variables

_LEAST_ANNOUNCED: Final = 1 << 20
"""Bytes above which the peers are warned of silence before sharing or reconstructing."""


class _NoValue:
    """Raises wherever a value is needed."""

    __slots__ = ()
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise NotRevealed(self._why())

    def _why(self) -> str:
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    __hash__ = object.__hash__
    __eq__ = __ne__ = _refuse
    __array__ = __float__ = __int__ = __bool__ = __index__ = __complex__ = _refuse
    __iter__ = __len__ = __getitem__ = __contains__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = _refuse
    __rmatmul__ = __truediv__ = __rtruediv__ = __neg__ = __pow__ = __mod__ = __abs__ = _refuse
    __and__ = __or__ = __xor__ = __invert__ = __floordiv__ = __rpow__ = _refuse


class SpuArray(_NoValue):
    """A handle of an array that is secret-shared on an SPU device. `SpuDevice` makes it.

    Attributes:
        device: the name of the device.
        shape: the shape, as in NumPy; every party knows it.
        dtype: the dtype, as in NumPy; every party knows it.
    """

    __slots__ = ("__weakref__", "_home", "_step", "device", "dtype", "shape")

    def __init__(self, home: SpuDevice, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Not for users: call `SpuDevice.private` or `SpuDevice.run`."""
        self._home = home
        self._step = home._steps.number
        self.device = home.name
        self.shape = shape
        self.dtype = dtype

    def _why(self) -> str:
        return (
            f"a value of {short(self)} is secret-shared on {self.device} and not known here: "
            f"compute with it in run(), or reveal() it"
        )

    def __repr__(self) -> str:
        return f"<SpuArray {short(self)} on {self.device}>"


class Withheld(_NoValue):
    """What `SpuDevice.reveal` returns at parties that do not get the value.

    Attributes:
        to: the names of the parties that got it.
        shape: the shape of the value.
        dtype: the dtype of the value.
    """

    __slots__ = ("dtype", "shape", "to")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], to: tuple[str, ...]) -> None:
        """Not for users: call `SpuDevice.reveal`."""
        self.shape = shape
        self.dtype = dtype
        self.to = to

    def _why(self) -> str:
        return (
            f"a value of {short(self)} was revealed to {', '.join(self.to)} only: use it there, "
            "or add this party to reveal(to=…)"
        )

    def __repr__(self) -> str:
        return f"<Withheld {short(self)}, revealed to {', '.join(self.to)}>"


@dataclass(frozen=True)
class Surroundings:
    """What a device needs of its session.

    Attributes:
        communicator: this party's communicator; each chain of steps takes a namespace below it.
        failure: the session's failure.
        make_link: makes this party's end of the device's link; all members call it at once.
        silence: a context in which the peers do not take silence for death.
        close_timeout: seconds to wait for the others when something is closed.
    """

    communicator: Communicator
    failure: Failure
    make_link: Callable[[str], SpuLink]
    silence: Silence
    close_timeout: float


@dataclass
class _Members:
    """What only a member has: its end of the link, and SPU."""

    context: Any
    runtime: spu.Runtime
    link: SpuLink | None
    """None on a spawned device, which uses the link of its parent."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the runtime is used: spawned devices copy variables from other threads."""


class _Spawned:
    """The devices spawned from one, by number. Of closed ones only a digest is left.

    They may be closed in any order and from several threads: the digest goes by number.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._open: dict[int, SpuDevice] = {}
        self._closed: dict[int, bytes] = {}
        self._folded = hashlib.sha256()
        self._folded_count = 0

    def next_number(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def add(self, number: int, device: SpuDevice) -> None:
        with self._lock:
            self._open[number] = device

    def open(self) -> list[SpuDevice]:
        with self._lock:
            return [self._open[number] for number in sorted(self._open)]

    def retire(self, device: SpuDevice) -> None:
        with self._lock:
            (number,) = (n for n, known in self._open.items() if known is device)
            self._closed[number] = _calls_of(self._open.pop(number))
            while self._folded_count + 1 in self._closed:
                self._folded_count += 1
                self._folded.update(self._closed.pop(self._folded_count))

    def digest(self) -> bytes:
        with self._lock:
            whole = self._folded.copy()
            for number in range(self._folded_count + 1, self._count + 1):
                if number in self._closed:
                    whole.update(self._closed[number])
                elif number in self._open:
                    whole.update(_calls_of(self._open[number]))
            return whole.digest()


def _calls_of(device: SpuDevice) -> bytes:
    return device._steps.digest + device.spawned_digest()


class SpuDevice:
    """One SPU device. ``session.spu(name)`` makes it; all parties make the same calls.

    Attributes:
        name: its name in the cluster file, followed by ``~1`` and so on for a spawned device.
        members: the names of the parties that compute, in rank order.
        is_member: whether this party is one of them.
    """

    def __init__(
        self, name: str, spec: DeviceSpec, members: tuple[str, ...], steps: Steps, at: Surroundings
    ) -> None:
        """Not for users: call `redislink.Session.spu`."""
        self.name = name
        self.members = members
        self._me = at.communicator.party
        self.is_member = self._me in members
        self._spec = spec
        self._steps = steps
        self._at = at
        self._config = runtime_config(spec)
        self._io = spu.Io(len(members), self._config)
        self._ranges = Ranges.of(name, self._config, self._io)
        self._cache: Kept[Compiled] = Kept()
        self._own: _Members | None = None
        self._own_lock = threading.Lock()
        self._parent: SpuDevice | None = None
        self._closed = False
        self._spawned = _Spawned()
        self._number = 0
        self._contexts: list[Any] = []
        self._variables = Variables()

    # -- what users call ---------------------------------------------------------------------

    def private(self, load: Any, owner: str, *, wrap_ok: bool = False) -> Any:
        """Put a value on the device as secret shares, one for each member.

        Args:
            load: a function without arguments, called at the owner only. It returns an array, a
                number, or a pytree of these in dicts, lists, tuples and namedtuples. The owner may
                also pass the value itself; what the others pass is ignored.
            owner: the name of the party that has the value, which need not be a member.
            wrap_ok: whether whole numbers may use the field's full width. Comparing, sorting and
                dividing such numbers goes wrong; adding, multiplying, bitwise operations and
                ``==`` work.

        Returns:
            The handle, an `SpuArray`; for a pytree, the same pytree with handles as leaves.

        Raises:
            LoadFailed: ``load`` raised, or returned something that the device cannot hold. Raised
                at every party but the owner, which raises the error itself; the session can go on.
            UsageError: ``owner`` is not a party. At the owner, before anything is shared: there is
                a NaN, an infinity, a value out of the device's range, or a dtype or container that
                SPU does not have. The message says how many values are wrong, where the first is,
                and what the range is.
            ProgramDiverged, PeerError: as for every call of a session.
        """
        self._check_party(owner, "owner")
        call = f"{self.name}.private(owner={owner})"
        everybody = self._at.communicator.party_names
        with self._steps.step(call, {*self.members, owner}, touches=everybody) as step:
            if step.recorded is not None and step.recorded.kind == "raised":
                failed = error_again(step.recorded, owner)
            elif step.recorded is not None:
                return self._private_again(step.recorded, owner)
            elif owner != self._me:
                return self._receive_private(step, owner, call)
            else:
                try:
                    loaded = self._load(load, wrap_ok=wrap_ok)
                except Exception as error:  # noqa: BLE001 - raised below, where the step has ended
                    failed = error
                    step.gives(partial(error_given, failed))
                    told = ["failed", type(error).__name__]
                    self._steps.tell_failure(self._others(), told, error)
                else:
                    return self._send_private(step, *loaded)
        raise failed

    def run(
        self,
        function: Function,
        static_argnums: int | Sequence[int] = (),
        *,
        wrap_ok: bool = False,
    ) -> Function:
        """Compute a function of JAX arrays on the device: ``run(f)(x, y)``.

        The function is compiled once for each combination of shapes and static arguments, as by
        ``jax.jit``: use one function object for many calls. Its arguments may be handles of this
        device, plain numbers and arrays (public, and equal at all parties), and pytrees of both.

        Args:
            function: the function. To compile it, it is called with shapes only.
            static_argnums: the positions of arguments that are not arrays; these are hashable,
                public, and equal at all parties.
            wrap_ok: as for `private`, for public whole numbers.

        Returns:
            A function that returns what ``function`` returns, with handles (`SpuArray`) in place
            of arrays. It raises what JAX raises while it traces ``function``, and UsageError if SPU
            cannot compile it; both come at every party before anything is sent, so the session can
            go on. It raises UsageError for arguments that are of another device, were not revealed
            or do not fit on this device, and for results of types that SPU does not have; and
            ProgramDiverged and PeerError as every call of a session.
        """
        static = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)

        def compute(*arguments: Any, **named: Any) -> Any:
            return self._compute(function, static, arguments, named, wrap_ok=wrap_ok)

        compute.__name__ = compute.__qualname__ = f"{self.name}.run({name_of(function)})"
        return compute

    def reveal(self, value: Any, to: str | Sequence[str]) -> Any:
        """Reveal a value to some parties.

        Args:
            value: a handle, or a pytree of handles.
            to: the names of one or more parties that learn it; they need not be members.

        Returns:
            At the parties in ``to``, the value: a NumPy array or a pytree of arrays. At the others,
            the same with a `Withheld` in place of each array.

        Raises:
            UsageError: ``to`` is empty or has a name that is not a party's, or ``value`` is not a
                handle of this device.
            ProgramDiverged, PeerError: as for every call of a session.
        """
        receivers = (to,) if isinstance(to, str) else tuple(dict.fromkeys(to))
        if not receivers:
            raise UsageError(
                f"{self._me}: {self.name}.reveal to nobody: name at least one party in to="
            )
        for party in receivers:
            self._check_party(party, "to")
        handles, tree = self._flatten(value, "reveal")
        for handle in handles:
            self._check_handle(handle, "reveal")
        names = ", ".join(short(handle) for handle in handles)
        call = f"{self.name}.reveal({names}; to={', '.join(receivers)})"
        involved = {*self.members, *receivers}
        with self._steps.step(
            call,
            involved,
            [("the containers", str(tree).encode())],
            touches=involved,
            needs=self._needs(handles),
        ) as step:
            shapes = [(handle.shape, handle.dtype) for handle in handles]
            self._steps.reveals(step, self.name, receivers, shapes)
            if self._me not in receivers:
                values: list[Any] = [Withheld(h.shape, h.dtype, receivers) for h in handles]
            elif step.recorded is not None:
                values = values_again(step.recorded, shapes)
            if step.recorded is None and self._me not in involved:
                step.passes_reveal()
            elif step.recorded is None:
                others = [party for party in receivers if party != self._me]
                step.before_reveal(sends=self.is_member and bool(others))
                mine = self._own_shares(handles)
                if mine is not None and others:
                    body = [[share.meta, list(share.share_chunks)] for share in mine]
                    for party in others:
                        self._steps.send(party, body)
                if self._me in receivers:
                    values = self._reconstruct(handles, mine)
                    step.gives(partial(values_given, values))
            return jax.tree_util.tree_unflatten(tree, values)

    def spawn(self) -> SpuDevice:
        """Make a device of the same members with its own link, to run at the same time.

        It has its own thread and runtime until it is closed, for example by
        ``with device.spawn() as other``.

        All calls of one session have one order. To compute in several threads, spawn a device for
        each thread before the threads start; each device has its own order of calls. You may use
        handles of this device there: their shares are copied once, while this device is idle.

        Raises:
            ProgramDiverged, PeerError: as for every call of a session.
        """
        with self._steps.step(f"{self.name}.spawn()", self.members) as step:
            number = self._spawned.next_number()
            name = f"{self.name}~{number}"
            place = self._at.communicator.sub(str(number))
            journal = self._steps.journal and self._steps.journal.spawned(name, place)
            steps = Steps(
                place,
                self._at.failure,
                name,
                journal=journal,
                audit=self._steps.audit,
                note_step=self._steps.note_step,
            )
            child = SpuDevice(
                name, self._spec, self.members, steps, replace(self._at, communicator=place)
            )
            child._parent, child._number = self, number
            if self.is_member and not step.is_past:
                child._ensure()
            self._spawned.add(number, child)
            return child

    def close(self) -> None:
        """End a spawned device, and free its thread and runtime. Safe to call twice.

        All parties must close it after the same calls. Reveal the results that you need first.
        Spawned devices that are still open, and all other devices, end with the session.

        Raises:
            UsageError: this device was not spawned.
            ProgramDiverged, PeerError: as for every call of a session.
        """
        if self._parent is None:
            raise UsageError(
                f"{self._me}: {self.name} ends with its session: close only devices from spawn()"
            )
        if self._closed:
            return
        for child in self._spawned.open():
            child.close()
        self._steps.conclude(
            self._at.close_timeout,
            [("the calls of devices spawned from it", self.spawned_digest())],
        )
        self._closed = True
        self._parent._spawned.retire(self)
        self._own, self._cache, self._contexts = None, Kept(), []
        self._variables.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()

    def __repr__(self) -> str:
        return f"<SpuDevice {self.name} of {', '.join(self.members)}, at {self._me}>"

    # -- for the session ---------------------------------------------------------------------

    def ensure(self) -> None:
        """Make the link and the runtime, if this party is a member and has none yet."""
        if self.is_member:
            self._ensure()

    def spawned_digest(self) -> bytes:
        """The digest of the calls of all devices spawned from this one."""
        return self._spawned.digest()

    def leave(self) -> None:
        """Stop the chains of the devices spawned from this one."""
        for child in self._spawned.open():
            child.leave()
            child._steps.leave()

    def close_link(self) -> None:
        """Close the link."""
        if self._own is not None and self._own.link is not None:
            self._own.link.close()

    # -- private -----------------------------------------------------------------------------

    def _load(
        self, load: Any, *, wrap_ok: bool
    ) -> tuple[Any, list[Array], list[list[libspu.Share]]]:
        """The containers, the leaves, and for each leaf the shares of all members."""

        def hold(leaf: Any, place: str) -> Array:
            return self._hold(leaf, lambda: f"value{place}", wrap_ok=wrap_ok)

        value = load() if callable(load) else load
        try:
            tree, leaves = take_apart(value, hold)
        except UsageError as error:
            raise UsageError(f"{self._me}: {self.name}.private: {error}") from None
        return tree, leaves, [self._make_shares(x, libspu.Visibility.VIS_SECRET) for x in leaves]

    def _hold(self, leaf: Any, where: Callable[[], str], *, wrap_ok: bool) -> Array:
        """A leaf as an array that this device can hold; UsageError if it cannot."""
        try:
            array = as_array(leaf)
            self._ranges.check(array, columns_of(leaf), wrap_ok=wrap_ok)
        except UsageError as error:
            raise UsageError(f"{where()} {error}") from None
        return array

    def _others(self) -> list[str]:
        return [party for party in self._at.communicator.party_names if party != self._me]

    def _send_private(
        self, step: Step, tree: Any, leaves: list[Array], shares: list[list[libspu.Share]]
    ) -> Any:
        told = [[list(leaf.shape), leaf.dtype.name] for leaf in leaves]
        for party in self._others():
            theirs = None
            if party in self.members:
                rank = self.members.index(party)
                theirs = [[of_all[rank].meta, list(of_all[rank].share_chunks)] for of_all in shares]
            self._steps.send(party, ["value", tree, told, theirs])
        mine = []
        if self.is_member:
            mine = [of_all[self.members.index(self._me)] for of_all in shares]
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        return self._keep(step, self._me, tree, shapes, mine)

    def _receive_private(self, step: Step, owner: str, call: str) -> Any:
        match self._steps.recv(owner):
            case ["failed", str(kind)]:
                raise LoadFailed(owner, call, kind)
            case ["value", tree, list(told), theirs] if count_leaves_untrusted(tree) == len(told):
                shapes = [shape for entry in told if (shape := shape_untrusted(entry)) is not None]
                if len(shapes) < len(told):
                    raise self._steps.not_understood(owner)
                if not self.is_member:
                    return self._keep(step, owner, tree, shapes, [])
                kinds = [self._kind_of_private(dtype) for _, dtype in shapes]
                mine = self._shares_untrusted(owner, theirs, shapes, kinds)
                return self._keep(step, owner, tree, shapes, mine)
        raise self._steps.not_understood(owner)

    def _keep(
        self,
        step: Step,
        owner: str,
        tree: Any,
        shapes: Sequence[Shape],
        mine: Sequence[libspu.Share],
    ) -> Any:
        handles = [SpuArray(self, shape, dtype) for shape, dtype in shapes]
        if self.is_member:
            own = self._ensure()
            with own.lock:
                self._variables.sweep(own.runtime)
                for handle, share in zip(handles, mine, strict=True):
                    self._put(own, self._variables.name(handle), share, owner)
        step.gives(partial(handles_given, tree, handles, mine))
        return self._fill(owner, tree, handles)

    def _private_again(self, recorded: Recorded, owner: str) -> Any:
        """What the journal says that `private` gave."""
        tree, shapes, _ = handles_again(recorded)
        handles = [SpuArray(self, shape, dtype) for shape, dtype in shapes]
        self._recall(recorded, handles)
        return self._fill(owner, tree, handles)

    def _recall(self, recorded: Recorded, handles: Sequence[SpuArray]) -> None:
        """Say that the shares of these handles, new ones, are in the journal."""
        _, shapes, readers = handles_again(recorded)
        if shapes != [(handle.shape, handle.dtype) for handle in handles]:
            raise damaged(recorded)
        for handle, read in zip(handles, readers, strict=False):
            self._variables.keep_for_later(handle, read)
        recorded.belongs_to(handles)

    def _fill(self, owner: str, tree: Any, handles: Sequence[SpuArray]) -> Any:
        try:
            return fill(tree, handles)
        except Unknown as error:
            raise UsageError(
                f"{self._me}: {owner} put a namedtuple {error} on {self.name}, and this party has "
                "no such class: import its module here too, or use a dict"
            ) from None

    def _shares_untrusted(
        self, peer: str, body: Any, shapes: Sequence[Any], kinds: Sequence[ShareKind | None]
    ) -> list[libspu.Share]:
        """The shares of arrays of these shapes and kinds; PeerError if they do not match."""
        if not isinstance(body, list) or len(body) != len(shapes):
            raise self._steps.not_understood(peer)
        shares = [
            share_untrusted(packed, shape, kind)
            for packed, shape, kind in zip(body, shapes, kinds, strict=True)
        ]
        found = [share for share in shares if share is not None]
        if len(found) < len(shares):
            raise self._steps.not_understood(peer)
        return found

    def _kind_of_private(self, dtype: np.dtype[Any]) -> ShareKind:
        """The kind of a share from `private`: SPU makes the same one here as at the owner."""
        (share, *_) = self._io.make_shares(np.zeros((), dtype), libspu.Visibility.VIS_SECRET)
        return kind_of(share.meta)

    def _make_shares(self, value: Array, visibility: libspu.Visibility) -> list[libspu.Share]:
        with self._large(value.nbytes):
            shares: list[libspu.Share] = self._io.make_shares(value, visibility)
        return shares

    # -- run ---------------------------------------------------------------------------------

    def _compute(
        self,
        function: Function,
        static: tuple[int, ...],
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        *,
        wrap_ok: bool,
    ) -> Any:
        places = {place + len(arguments) if place < 0 else place for place in static}
        if not places <= set(range(len(arguments))):
            raise UsageError(
                f"{self._me}: {self.name}.run({name_of(function)}): static_argnums {static} for "
                f"{len(arguments)} arguments: use positions of arguments that you pass"
            )
        fixed = tuple((place, arguments[place]) for place in sorted(places))
        traced = [a for place, a in enumerate(arguments) if place not in places]
        rest = [place for place in range(len(arguments)) if place not in places]
        given, tree = self._flatten((traced, named), f"run({name_of(function)})")

        def label(number: int) -> str:
            what = _labels((traced, named), rest)[number]
            return f"{self._me}: {self.name}.run({name_of(function)}): {what}"

        leaves = [
            self._argument(leaf, partial(label, number), wrap_ok=wrap_ok)
            for number, leaf in enumerate(given)
        ]
        shapes = tuple((leaf.shape, leaf.dtype.name) for leaf in leaves)
        key = (
            function,
            tuple((place, type(value), value) for place, value in fixed),  # 1 is not True
            tree,
            shapes,
            tuple(isinstance(leaf, SpuArray) for leaf in leaves),
        )
        try:
            compiled = self._cache.get(key)
        except TypeError as error:
            raise UsageError(
                f"{self._me}: {self.name}.run({name_of(function)}): a static argument is not "
                f"hashable ({error}): remove it from static_argnums, or pass a tuple"
            ) from None
        if compiled is None:
            labels = _labels((traced, named), rest)
            compiled = self._trace(function, len(arguments), fixed, tree, leaves, labels)
        if compiled.is_traced_only:
            if not self._steps.is_next_answered:
                with self._at.silence():
                    compiled.lower()
            self._cache.put(key, compiled, compiled.nbytes)
        public = [
            (label, leaf.tobytes())
            for label, leaf in zip(compiled.labels, leaves, strict=True)
            if not isinstance(leaf, SpuArray)
        ]
        call = f"{self.name}.run({name_of(function)})({', '.join(map(short, leaves))})"
        with self._steps.step(
            call,
            self.members,
            [*compiled.parts, *public],
            touches=self.members,
            needs=self._needs(leaves),
            quiet=True,
        ) as step:
            outputs = [SpuArray(self, shape, dtype) for shape, dtype in compiled.out_shapes]
            if step.recorded is not None:
                self._recall(step.recorded, outputs)
            else:
                if self.is_member:
                    self._run_as_member(name_of(function), compiled, leaves, outputs)
                step.gives(lambda: handles_given(None, outputs, self._own_shares(outputs) or ()))
            return jax.tree_util.tree_unflatten(compiled.out_tree, outputs)

    def _flatten(self, value: Any, call: str) -> tuple[list[Any], Any]:
        try:
            leaves, tree = jax.tree_util.tree_flatten(value)
        except ValueError as error:
            raise UsageError(
                f"{self._me}: {self.name}.{call}: JAX cannot sort the keys of a dict ({error}): "
                "use keys of one kind"
            ) from None
        return leaves, tree

    def _argument(self, leaf: Any, where: Callable[[], str], *, wrap_ok: bool) -> SpuArray | Array:
        if isinstance(leaf, SpuArray):
            self._check_handle(leaf, "run")
            return leaf
        if isinstance(leaf, Withheld):
            raise NotRevealed(f"{self._me}: an argument of {self.name}.run: {leaf._why()}")
        return self._hold(leaf, where, wrap_ok=wrap_ok)

    def _trace(
        self,
        function: Function,
        count: int,
        fixed: Any,
        tree: Any,
        leaves: list[Any],
        labels: tuple[str, ...],
    ) -> Compiled:
        name = name_of(function)
        given = ", ".join(map(short, leaves))
        with self._at.silence():
            return trace_function(
                flatten(function, count, fixed, tree),
                leaves,
                [isinstance(leaf, SpuArray) for leaf in leaves],
                labels,
                self._ranges,
                f"{self._me}: {self.name}.run({name}) with ({given})",
            )

    def _run_as_member(
        self, name: str, compiled: Compiled, leaves: list[Any], outputs: list[SpuArray]
    ) -> None:
        own = self._ensure()
        relative = self.members.index(self._me)
        for leaf in leaves:
            if isinstance(leaf, SpuArray):
                self._bring(leaf, own)
        with own.lock:
            self._variables.sweep(own.runtime)
            inputs, passing = [], []
            for leaf in leaves:
                if isinstance(leaf, SpuArray):
                    inputs.append(self._variables.of(leaf))
                    continue
                share = self._make_shares(leaf, libspu.Visibility.VIS_PUBLIC)[relative]
                passing.append(self._variables.next_name())
                self._put(own, passing[-1], share, self._me)
                inputs.append(passing[-1])
            executable = libspu.Executable(
                name=name,
                input_names=inputs,
                output_names=[self._variables.name(output) for output in outputs],
                code=compiled.code,
            )
            try:
                own.runtime.run(executable)
            except Exception as error:
                error.add_note(f"{self._me}: in {self.name}.run({name})")
                raise
            for variable in passing:
                own.runtime.del_var(variable)

    # -- reveal ------------------------------------------------------------------------------

    def _own_shares(self, handles: list[SpuArray]) -> list[libspu.Share] | None:
        if not self.is_member:
            return None
        with self._large(sum(h.size * h.dtype.itemsize for h in handles)):
            return [self._share_of(handle) for handle in handles]

    def _reconstruct(self, handles: list[SpuArray], mine: list[libspu.Share] | None) -> list[Array]:
        shapes = [(handle.shape, handle.dtype) for handle in handles]
        kinds: list[ShareKind | None] = [None] * len(handles)
        if mine is not None:
            kinds = [kind_of(share.meta) for share in mine]
        shares = []
        for member in self.members:
            if mine is not None and member == self._me:
                shares.append(mine)
                continue
            theirs = self._shares_untrusted(member, self._steps.recv(member), shapes, kinds)
            kinds = [kind_of(share.meta) for share in theirs]
            shares.append(theirs)
        values = []
        for pieces, (shape, dtype) in zip(zip(*shares, strict=True), shapes, strict=True):
            with self._large(int(np.prod(shape)) * dtype.itemsize):
                try:
                    value = self._io.reconstruct(list(pieces))
                except RuntimeError as error:
                    raise ConfigError(
                        f"{self._me}: the shares of {self.name} do not fit together: check that "
                        "all members run the same version of spu"
                    ) from error
            values.append(np.asarray(value).reshape(shape).astype(dtype, copy=False))
        return values

    # -- shared ------------------------------------------------------------------------------

    def _ensure(self) -> _Members:
        """The link's context and the runtime, which all members make at once."""
        if self._own is not None:
            return self._own
        parent = self._parent
        context = None if parent is None else parent._context_of(self._number)
        with self._own_lock:
            if self._own is None:
                link = None
                if context is None:
                    link = self._at.make_link(self.name)
                    context = link.context
                self._own = _Members(context, spu.Runtime(context, self._config), link)
            return self._own

    def _context_of(self, number: int) -> Any:
        """The context of a device spawned from this one.

        A context counts those spawned from it, and they must be the same ones at all members. So
        they are made in the order of the devices' numbers, whichever is needed first.
        """
        own = self._ensure()
        with own.lock:
            while len(self._contexts) < number:
                self._contexts.append(own.context.spawn())
            return self._contexts[number - 1]

    def _needs(self, values: Sequence[Any]) -> int:
        """The last step of the parent's chain that made one of these handles; 0 if none did."""
        return max(
            (v._step for v in values if isinstance(v, SpuArray) and v._home is not self), default=0
        )

    def _check_party(self, party: object, what: str) -> None:
        names = self._at.communicator.party_names
        if party not in names:
            raise UsageError(
                f"{self._me}: {what}={party!r:.80} is not a party: use one of {', '.join(names)}"
            )

    def _check_handle(self, handle: object, call: str) -> None:
        if not isinstance(handle, SpuArray):
            raise UsageError(
                f"{self._me}: {self.name}.{call} takes handles, not {type(handle).__name__}: put "
                "values on the device with private() first"
            )
        if handle._home is not self and handle._home is not self._parent:
            raise UsageError(
                f"{self._me}: {self.name}.{call} got {handle!r}: it lives on another device or is "
                f"of another session; reveal it, and put it on {self.name} with private()"
            )

    def _bring(self, handle: SpuArray, own: _Members) -> None:
        """Give this device's runtime the share of a handle, unless it has it."""
        if self._variables.has(handle):
            return
        share = self._share_of(handle)
        with own.lock:
            self._put(own, self._variables.name(handle), share, self._me)
        self._variables.arrived(handle)

    def _share_of(self, handle: SpuArray) -> libspu.Share:
        """This member's share of a handle, from the runtime of its device or the journal."""
        home = handle._home
        read = home._variables.waiting(handle)
        if read is not None:
            return read()
        if home._own is None or not home._variables.has(handle):
            raise UsageError(f"{self._me}: {handle!r} was never computed: an earlier call failed")
        with home._own.lock:
            return home._own.runtime.get_var(home._variables.of(handle))

    def _put(self, own: _Members, name: str, share: libspu.Share, owner: str) -> None:
        """Give SPU a share as a variable. Needs the lock.

        Raises:
            PeerError: SPU refuses the share, which came from a peer, ``owner``.
            UsageError: SPU refuses the share, which is this party's own.
        """
        try:
            own.runtime.set_var(name, share)
        except RuntimeError as error:
            if owner != self._me:
                raise self._steps.not_understood(owner) from error
            raise UsageError(
                f"{self._me}: SPU on {self.name} refuses a share that it made itself: check that "
                "this process has one version of spu, and report it"
            ) from error

    def _large(self, size: int) -> contextlib.AbstractContextManager[None]:
        return self._at.silence() if size >= _LEAST_ANNOUNCED else contextlib.nullcontext()


def _labels(given: tuple[list[Any], dict[str, Any]], places: list[int]) -> tuple[str, ...]:
    """The name of each leaf of the arguments in errors, such as ``argument 1['x']``.

    Args:
        given: the positional arguments without static ones, and the keyword arguments.
        places: the positions of the former, from 0.
    """
    labels = []
    for path, _ in jax.tree_util.tree_flatten_with_path(given)[0]:
        by_name, argument, *inner = path
        what = argument.key if by_name.idx else places[argument.idx] + 1
        labels.append(f"argument {what}{jax.tree_util.keystr(tuple(inner))}")
    return tuple(labels)
