"""`SpuDevice`: an SPU as one party of a session sees it, whether it is a member or not.

Rules:
- Every call is a step that all parties make, in the same order (`redislink.session.steps`).
- In the clear a value is only at its owner, and at those to whom it is revealed. What is in
  between are `SpuArray` handles: shape and dtype, which every party knows.
- What a function closes over, static arguments, and arguments that are plain numbers or arrays
  are public: they are compiled in, or given to SPU as public. They must be equal everywhere;
  digests of them go to the other parties.
- A run sends nothing of its own. That all ran the same is proved by the next message of a step.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import weakref
from collections import deque
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
from redislink.session.steps import Failure, Silence, Steps
from redislink.spu.arrays import Array, as_array, columns_of, short
from redislink.spu.compiling import Compiled, Function, Kept, compile_function, flatten, name_of
from redislink.spu.link import SpuLink, runtime_config
from redislink.spu.pytrees import Unknown, count_leaves_untrusted, fill, take_apart
from redislink.spu.ranges import Ranges
from redislink.spu.shares import ShareKind, kind_of, shape_untrusted, share_untrusted

_LEAST_ANNOUNCED: Final = 1 << 20
"""Bytes from which on peers are told before the GIL is held for sharing or reconstructing."""


class _NoValue:
    """Raises wherever a value would be needed."""

    __slots__ = ()
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise NotRevealed(self._why())

    def _why(self) -> str:
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    __hash__ = object.__hash__
    __eq__ = __ne__ = _refuse
    __array__ = __float__ = __int__ = __bool__ = __index__ = __complex__ = _refuse
    __iter__ = __len__ = __getitem__ = __contains__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = _refuse
    __rmatmul__ = __truediv__ = __rtruediv__ = __neg__ = __pow__ = __mod__ = __abs__ = _refuse
    __and__ = __or__ = __xor__ = __invert__ = __floordiv__ = __rpow__ = _refuse


class SpuArray(_NoValue):
    """A handle: an array that lives on an SPU device as shares. Made by `SpuDevice`.

    Attributes:
        device: name of the device.
        shape, dtype: as numpy has them; known to every party.
    """

    __slots__ = ("__weakref__", "_home", "device", "dtype", "shape")

    def __init__(self, home: SpuDevice, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Not for users: `SpuDevice.private` and `SpuDevice.run` are."""
        self._home = home
        self.device = home.name
        self.shape = shape
        self.dtype = dtype

    def _why(self) -> str:
        return (
            f"a value of {short(self)} lives on {self.device} as shares and is not known here: "
            f"compute with it by run(), or reveal() it"
        )

    def __repr__(self) -> str:
        return f"<SpuArray {short(self)} on {self.device}>"


class Withheld(_NoValue):
    """What `SpuDevice.reveal` gives to those that do not get the value.

    Attributes:
        to: names of the parties that got it.
        shape, dtype: of the value.
    """

    __slots__ = ("dtype", "shape", "to")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], to: tuple[str, ...]) -> None:
        """Not for users: `SpuDevice.reveal` is."""
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
        communicator: of this party; each chain of steps takes a namespace beneath it.
        failure: of the session.
        make_link: makes this party's end of the device's link; all members call it at once.
        silence: peers do not take silence within it for death.
        close_timeout: seconds for which the others are waited for where something is closed.
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
    """None on a spawned device, whose link is that of its parent."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the runtime is used: spawned devices copy variables from other threads."""


class _Spawned:
    """The devices spawned from one, by number; of those that were closed only a digest is left.

    They may be closed in any order, also from several threads: the digest is by number.
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
    """One SPU device. Made by ``session.spu(name)``; all parties make the same calls.

    Attributes:
        name: in the cluster file; with ``~1`` and so on behind it for a spawned one.
        members: names of the parties that compute, in rank order.
        is_member: True if this party is one of them.
    """

    def __init__(
        self, name: str, spec: DeviceSpec, members: tuple[str, ...], steps: Steps, at: Surroundings
    ) -> None:
        """Not for users: `redislink.Session.spu` is."""
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
        self._variable = 0
        self._variables: dict[int, tuple[weakref.ref[SpuArray], str]] = {}
        self._garbage: deque[str] = deque()

    # -- what users call ---------------------------------------------------------------------

    def private(self, load: Any, owner: str, *, wrap_ok: bool = False) -> Any:
        """Put a value on the device as secret shares, one for each member.

        Args:
            load: called without arguments, at the owner only; gives an array, a number, or a
                pytree of them in dicts, lists, tuples and namedtuples. At the owner it may be the
                value itself; what the others pass is not looked at.
            owner: the party that has the value, a member or not.
            wrap_ok: whole numbers may be of the field's full width, where comparing, sorting and
                dividing go wrong; adding, multiplying, bitwise operations and ``==`` are right.

        Returns:
            The handle, `SpuArray`; for a pytree, the same with handles as leaves.

        Raises:
            LoadFailed: ``load`` raised, or gave what the device cannot hold. At every party but
                the owner, which raises the error itself; the session can go on.
            UsageError: ``owner`` is not a party. At the owner, before anything is shared: NaN,
                infinity, what is out of the device's range, a dtype or container that SPU does
                not have; with the place of the first, how many there are, and the range.
            ProgramDiverged, PeerError: as every call of a session.
        """
        self._check_party(owner, "owner")
        call = f"{self.name}.private(owner={owner})"
        with self._steps.step(call, {*self.members, owner}):
            if owner != self._me:
                return self._receive_private(owner, call)
            try:
                loaded = self._load(load, wrap_ok)
            except Exception as error:  # noqa: BLE001 - raised below, where the step has ended
                failed = error
                self._steps.tell_failure(self._others(), ["failed", type(error).__name__], error)
            else:
                return self._send_private(*loaded)
        raise failed

    def run(
        self,
        function: Function,
        static_argnums: int | Sequence[int] = (),
        *,
        wrap_ok: bool = False,
    ) -> Function:
        """A function of JAX arrays, to be computed on the device: ``run(f)(x, y)``.

        It is compiled once per shapes and static arguments, as by ``jax.jit``: keep one function
        object for many calls. What it is called with may be handles of this device, plain
        numbers and arrays (public, equal at all parties), and pytrees of both.

        Args:
            function: may be called with shapes only, to be compiled.
            static_argnums: places of arguments that are not arrays; hashable, public, and equal
                at all parties.
            wrap_ok: for public whole numbers, as in `private`.

        Returns:
            A function that gives what ``function`` does, with handles (`SpuArray`) for arrays.
            It raises what JAX raises while it traces ``function``, and UsageError if SPU cannot
            compile it (both at every party, before anything is sent: the session can go on),
            UsageError for an argument that is of another device, was not revealed or does not
            fit on this one, and for results of types that SPU does not have, and ProgramDiverged
            and PeerError as every call of a session.
        """
        static = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)

        def compute(*arguments: Any, **named: Any) -> Any:
            return self._compute(function, static, arguments, named, wrap_ok)

        compute.__name__ = compute.__qualname__ = f"{self.name}.run({name_of(function)})"
        return compute

    def reveal(self, value: Any, to: str | Sequence[str]) -> Any:
        """Reconstruct a value at some parties.

        Args:
            value: a handle, or a pytree of handles.
            to: who learns it, members or not; at least one.

        Returns:
            At the parties in ``to`` the value, a numpy array or a pytree of arrays; elsewhere
            the same with `Withheld` in their places.

        Raises:
            UsageError: ``to`` is empty or names what is not a party, or ``value`` is not a
                handle of this device.
            ProgramDiverged, PeerError: as every call of a session.
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
        with self._steps.step(
            call, {*self.members, *receivers}, [("the containers", str(tree).encode())]
        ):
            mine = self._own_shares(handles)
            if mine is not None:
                body = [[share.meta, list(share.share_chunks)] for share in mine]
                for party in receivers:
                    if party != self._me:
                        self._steps.send(party, body)
            if self._me not in receivers:
                values: list[Any] = [Withheld(h.shape, h.dtype, receivers) for h in handles]
            else:
                values = self._reconstruct(handles, mine)
            return jax.tree_util.tree_unflatten(tree, values)

    def spawn(self) -> SpuDevice:
        """A device of the same members with a link of its own, for runs at the same time.

        It has a thread and a runtime of its own until it is closed, as by ``with device.spawn()``.

        Calls of one session come in one order. To compute in several threads, spawn a device
        for each before they start; each has an order of its own. Handles of this device may be
        used there: their shares are copied, once, while this device does not run.

        Raises:
            ProgramDiverged, PeerError: as every call of a session.
        """
        with self._steps.step(f"{self.name}.spawn()", self.members):
            number = self._spawned.next_number()
            name = f"{self.name}~{number}"
            place = self._at.communicator.sub(str(number))
            steps = Steps(place, self._at.failure, name)
            child = SpuDevice(
                name, self._spec, self.members, steps, replace(self._at, communicator=place)
            )
            child._parent = self
            if self.is_member:
                own = self._ensure()
                with own.lock:
                    context = own.context.spawn()
                    child._own = _Members(context, spu.Runtime(context, self._config), None)
            self._spawned.add(number, child)
            return child

    def close(self) -> None:
        """End a spawned device, and free its thread and its runtime; safe to call twice.

        All parties close it, after the same calls. Reveal what is needed of it before. Those
        that are still open, and all other devices, end with the session.

        Raises:
            UsageError: this device was not spawned.
            ProgramDiverged, PeerError: as every call of a session.
        """
        if self._parent is None:
            raise UsageError(
                f"{self._me}: {self.name} ends with its session: only what spawn() gave is closed"
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
        self._own, self._cache = None, Kept()
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
        """Make link and runtime, if this party is a member and they are not there yet."""
        if self.is_member:
            self._ensure()

    def spawned_digest(self) -> bytes:
        """Of the calls of all devices spawned from this one."""
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

    def _load(self, load: Any, wrap_ok: bool) -> tuple[Any, list[Array], list[list[libspu.Share]]]:
        """Containers, leaves, and for each leaf every member's share."""

        def hold(leaf: Any, place: str) -> Array:
            return self._hold(leaf, lambda: f"value{place}", wrap_ok)

        value = load() if callable(load) else load
        try:
            tree, leaves = take_apart(value, hold)
        except UsageError as error:
            raise UsageError(f"{self._me}: {self.name}.private: {error}") from None
        return tree, leaves, [self._make_shares(x, libspu.Visibility.VIS_SECRET) for x in leaves]

    def _hold(self, leaf: Any, where: Callable[[], str], wrap_ok: bool) -> Array:
        """As an array that shares of this device can hold; UsageError if there is none."""
        try:
            array = as_array(leaf)
            self._ranges.check(array, columns_of(leaf), wrap_ok)
        except UsageError as error:
            raise UsageError(f"{where()} {error}") from None
        return array

    def _others(self) -> list[str]:
        return [party for party in self._at.communicator.party_names if party != self._me]

    def _send_private(
        self, tree: Any, leaves: list[Array], shares: list[list[libspu.Share]]
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
        return self._keep(self._me, tree, [(leaf.shape, leaf.dtype) for leaf in leaves], mine)

    def _receive_private(self, owner: str, call: str) -> Any:
        match self._steps.recv(owner):
            case ["failed", str(kind)]:
                raise LoadFailed(owner, call, kind)
            case ["value", tree, list(told), theirs] if count_leaves_untrusted(tree) == len(told):
                shapes = [shape for entry in told if (shape := shape_untrusted(entry)) is not None]
                if len(shapes) < len(told):
                    raise self._steps.not_understood(owner)
                if not self.is_member:
                    return self._keep(owner, tree, shapes, [])
                kinds = [self._kind_of_private(dtype) for _, dtype in shapes]
                mine = self._shares_untrusted(owner, theirs, shapes, kinds)
                return self._keep(owner, tree, shapes, mine)
        raise self._steps.not_understood(owner)

    def _keep(
        self, owner: str, tree: Any, shapes: Sequence[Any], mine: Sequence[libspu.Share]
    ) -> Any:
        handles = [SpuArray(self, shape, dtype) for shape, dtype in shapes]
        if self.is_member:
            own = self._ensure()
            with own.lock:
                self._sweep(own)
                for handle, share in zip(handles, mine, strict=True):
                    self._put(own, self._name_of(handle), share, owner)
        try:
            return fill(tree, handles)
        except Unknown as error:
            raise UsageError(
                f"{self._me}: {owner} put a namedtuple {error} on {self.name}, and this party has "
                "no such class: import its module here too, or take a dict"
            ) from None

    def _shares_untrusted(
        self, peer: str, body: Any, shapes: Sequence[Any], kinds: Sequence[ShareKind | None]
    ) -> list[libspu.Share]:
        """Shares of arrays of these shapes and kinds; PeerError if they are not."""
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
        """Of what `private` shares: SPU here makes it as SPU at the owner does."""
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
        wrap_ok: bool,
    ) -> Any:
        places = {place + len(arguments) if place < 0 else place for place in static}
        if not places <= set(range(len(arguments))):
            raise UsageError(
                f"{self._me}: {self.name}.run({name_of(function)}): static_argnums {static} for "
                f"{len(arguments)} arguments: name places that are given"
            )
        fixed = tuple((place, arguments[place]) for place in sorted(places))
        traced = [a for place, a in enumerate(arguments) if place not in places]
        rest = [place for place in range(len(arguments)) if place not in places]
        given, tree = self._flatten((traced, named), f"run({name_of(function)})")

        def label(number: int) -> str:
            what = _labels((traced, named), rest)[number]
            return f"{self._me}: {self.name}.run({name_of(function)}): {what}"

        leaves = [
            self._argument(leaf, partial(label, number), wrap_ok)
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
                f"hashable ({error}): take it out of static_argnums, or give a tuple"
            ) from None
        if compiled is None:
            labels = _labels((traced, named), rest)
            compiled = self._compile(function, len(arguments), fixed, tree, leaves, labels)
            self._cache.put(key, compiled, compiled.nbytes)
        public = [
            (label, leaf.tobytes())
            for label, leaf in zip(compiled.labels, leaves, strict=True)
            if not isinstance(leaf, SpuArray)
        ]
        call = f"{self.name}.run({name_of(function)})({', '.join(map(short, leaves))})"
        with self._steps.step(call, self.members, [*compiled.parts, *public]):
            outputs = [SpuArray(self, shape, dtype) for shape, dtype in compiled.out_shapes]
            if self.is_member:
                self._run_as_member(name_of(function), compiled, leaves, outputs)
            return jax.tree_util.tree_unflatten(compiled.out_tree, outputs)

    def _flatten(self, value: Any, call: str) -> tuple[list[Any], Any]:
        try:
            leaves, tree = jax.tree_util.tree_flatten(value)
        except ValueError as error:
            raise UsageError(
                f"{self._me}: {self.name}.{call}: JAX cannot sort the keys of a dict ({error}): "
                "give it keys of one kind"
            ) from None
        return leaves, tree

    def _argument(self, leaf: Any, where: Callable[[], str], wrap_ok: bool) -> SpuArray | Array:
        if isinstance(leaf, SpuArray):
            self._check_handle(leaf, "run")
            return leaf
        if isinstance(leaf, Withheld):
            raise NotRevealed(f"{self._me}: an argument of {self.name}.run: {leaf._why()}")
        return self._hold(leaf, where, wrap_ok)

    def _compile(
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
            return compile_function(
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
            self._sweep(own)
            inputs, passing = [], []
            for leaf in leaves:
                if isinstance(leaf, SpuArray):
                    inputs.append(self._variable_of(leaf))
                    continue
                share = self._make_shares(leaf, libspu.Visibility.VIS_PUBLIC)[relative]
                passing.append(self._next_name())
                self._put(own, passing[-1], share, self._me)
                inputs.append(passing[-1])
            executable = libspu.Executable(
                name=name,
                input_names=inputs,
                output_names=[self._name_of(output) for output in outputs],
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
        own = self._ensure()
        for handle in handles:
            self._bring(handle, own)
        with own.lock, self._large(sum(h.size * h.dtype.itemsize for h in handles)):
            return [own.runtime.get_var(self._variable_of(handle)) for handle in handles]

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
        with self._own_lock:
            if self._own is None:
                link = self._at.make_link(self.name)
                runtime = spu.Runtime(link.context, self._config)
                self._own = _Members(link.context, runtime, link)
            return self._own

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
        """See to it that a parent's variable is here too."""
        if id(handle) in self._variables:
            return
        home = handle._home
        if home._own is None or id(handle) not in home._variables:
            raise UsageError(f"{self._me}: {handle!r} was never computed: an earlier call failed")
        if home is self:
            return
        with home._own.lock:
            share = home._own.runtime.get_var(home._variable_of(handle))
        with own.lock:
            self._put(own, self._name_of(handle), share, self._me)

    def _put(self, own: _Members, name: str, share: libspu.Share, owner: str) -> None:
        """Give SPU a share as a variable; under the lock.

        Raises:
            PeerError: SPU refuses it, and it is ``owner``'s, a peer.
            UsageError: SPU refuses it, and it is this party's own.
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

    def _next_name(self) -> str:
        self._variable += 1
        return f"v{self._variable}"

    def _name_of(self, handle: SpuArray) -> str:
        """Give the handle a variable here, that goes when the handle does."""
        name, key = self._next_name(), id(handle)
        variables, garbage = self._variables, self._garbage

        def free(_: object) -> None:
            variables.pop(key, None)
            garbage.append(name)

        variables[key] = (weakref.ref(handle, free), name)
        return name

    def _variable_of(self, handle: SpuArray) -> str:
        return self._variables[id(handle)][1]

    def _sweep(self, own: _Members) -> None:
        """Free the variables whose handles are gone; under the lock.

        Not when they go: that can be in any thread, at any moment.
        """
        while self._garbage:
            # One whose run failed was never there.
            with contextlib.suppress(RuntimeError, IndexError):
                own.runtime.del_var(self._garbage.popleft())

    def _large(self, size: int) -> contextlib.AbstractContextManager[None]:
        return self._at.silence() if size >= _LEAST_ANNOUNCED else contextlib.nullcontext()


def _labels(given: tuple[list[Any], dict[str, Any]], places: list[int]) -> tuple[str, ...]:
    """What to call each leaf of arguments in errors: ``argument 1`` and what is in it.

    Args:
        given: the arguments by place, without static ones, and those by name.
        places: of the former, from 0.
    """
    labels = []
    for path, _ in jax.tree_util.tree_flatten_with_path(given)[0]:
        by_name, argument, *inner = path
        what = argument.key if by_name.idx else places[argument.idx] + 1
        labels.append(f"argument {what}{jax.tree_util.keystr(tuple(inner))}")
    return tuple(labels)
