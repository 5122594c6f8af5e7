"""Values on an SPU device, for the examples: share, compute, reveal.

Rules:
- Every party of the session makes the same `Device` calls in the same order, also a party that
  is no member: messages are matched by that order, and a call left out makes the others wait.
- In the clear a value is only at its owner, and at those to whom it is revealed.
- Shares travel as msgpack of bytes. Nothing is pickled, so no message can run code.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

import jax
import msgpack
import numpy as np
import spu
from numpy.typing import ArrayLike, NDArray
from spu import libspu
from spu.utils import frontend

from redislink import Endpoint
from redislink.spu import create_link, runtime_config

Array = NDArray[Any]
Function = Callable[..., Any]

_DTYPES: Final = {
    libspu.DataType.DT_I1: np.bool_,
    libspu.DataType.DT_I8: np.int8,
    libspu.DataType.DT_U8: np.uint8,
    libspu.DataType.DT_I16: np.int16,
    libspu.DataType.DT_U16: np.uint16,
    libspu.DataType.DT_I32: np.int32,
    libspu.DataType.DT_U32: np.uint32,
    libspu.DataType.DT_I64: np.int64,
    libspu.DataType.DT_U64: np.uint64,
    libspu.DataType.DT_F32: np.float32,
    libspu.DataType.DT_F64: np.float64,
}
# SPU's compiler caches in a dict without a lock, and in tests the parties are threads.
_compile_lock = threading.Lock()


class Device:
    """One SPU device, as one party of the session sees it.

    Attributes:
        members: names of the parties that compute, in rank order.
        is_member: True if this party is one of them.
    """

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        """Make the link and the runtime, if this party is a member; every member must be here.

        Args:
            endpoint: this party's; stays open when the device is closed.
            name: of a device in the cluster file.
        """
        cluster = endpoint.cluster
        config = runtime_config(cluster.device(name))
        self.members = tuple(cluster.party_names[rank] for rank in cluster.mask(name))
        self.is_member = endpoint.party in self.members
        self._endpoint = endpoint
        self._name = name
        self._io = spu.Io(len(self.members), config)
        self._executables: dict[tuple[Any, ...], libspu.Executable] = {}
        self._open = ExitStack()
        self._runtime: spu.Runtime | None = None
        if self.is_member:
            link = self._open.enter_context(create_link(name, endpoint))
            self._runtime = spu.Runtime(link.context, config)

    def share(self, name: str, value: ArrayLike | None, owner: str) -> None:
        """Put a value on the device as secret shares, one for each member.

        Args:
            name: of the new variable.
            value: any shape, of a dtype that SPU has; only the owner gives it, others pass None.
            owner: the party that has it, a member or not.
        """
        me = self._endpoint.party
        mine: libspu.Share | None = None
        if owner == me:
            if value is None:
                raise ValueError(f"{me} owns {name} and must give its value")
            shares = self._io.make_shares(np.asarray(value), libspu.Visibility.VIS_SECRET)
            for member, share in zip(self.members, shares, strict=True):
                if member == me:
                    mine = share
                else:
                    self._endpoint.send(member, self._tag("share", name), _pack(share))
        elif self.is_member:
            mine = _unpack_untrusted(self._endpoint.recv(owner, self._tag("share", name)))
        if self._runtime is not None:
            self._runtime.set_var(name, mine)

    def run(self, function: Function, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Compute on the shares; the results stay on the device. Compiles once per shape.

        Args:
            function: of JAX arrays; may be called with shapes only, to be compiled.
            inputs: the variables that are its arguments.
            outputs: names for what it returns; may be names of inputs, which they replace.
        """
        if self._runtime is None:
            return
        arguments = [self._argument(name) for name in inputs]
        shapes = tuple((argument.shape, argument.dtype) for argument in arguments)
        key = (function, tuple(inputs), tuple(outputs), shapes)
        if key not in self._executables:
            self._executables[key] = _compile(function, arguments, inputs, outputs)
        self._runtime.run(self._executables[key])

    def reveal(self, name: str, to: Sequence[str]) -> Array | None:
        """Reconstruct a variable at some parties.

        Args:
            name: of the variable.
            to: who learns it, members or not.

        Returns:
            The value, at the parties in ``to``; None elsewhere.
        """
        me = self._endpoint.party
        mine = None if self._runtime is None else self._runtime.get_var(name)
        if mine is not None:
            packed = _pack(mine)
            for party in to:
                if party != me:
                    self._endpoint.send(party, self._tag("reveal", name), packed)
        if me not in to:
            return None
        shares = [
            mine
            if member == me
            else _unpack_untrusted(self._endpoint.recv(member, self._tag("reveal", name)))
            for member in self.members
        ]
        return np.asarray(self._io.reconstruct(shares))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a variable, which every member knows.

        Raises:
            ValueError: this party is no member.
        """
        if self._runtime is None:
            raise ValueError(f"{self._endpoint.party} is no member of {self._name}")
        return tuple(self._runtime.get_var_meta(name).shape.dims)

    def close(self) -> None:
        """Close the link, after all that was sent has reached the broker."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def _tag(self, verb: str, name: str) -> str:
        return f"{self._name}/{verb}/{name}"

    def _argument(self, name: str) -> jax.ShapeDtypeStruct:
        assert self._runtime is not None
        dtype = _DTYPES[self._runtime.get_var_meta(name).data_type]
        return jax.ShapeDtypeStruct(self.shape(name), dtype)


def print_missing(missing: list[str], waited_seconds: float) -> None:
    """For ``connect(on_progress=)``: say on stderr, at first and then every ten seconds, who is
    not there yet."""
    if round(waited_seconds) % 10 == 1:
        print(f"waiting for {', '.join(missing)}", file=sys.stderr, flush=True)


def _compile(
    function: Function,
    arguments: Sequence[jax.ShapeDtypeStruct],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> libspu.Executable:
    # Without this, JAX would cut 64-bit values to 32 bits.
    wide = any(argument.dtype.itemsize == 8 for argument in arguments)
    with _compile_lock, jax.enable_x64(wide):
        executable, _ = frontend.compile(
            frontend.Kind.JAX,
            function,
            list(arguments),
            {},
            list(inputs),
            [libspu.Visibility.VIS_SECRET] * len(inputs),
            lambda _: list(outputs),
        )
    return executable


def _pack(share: libspu.Share) -> bytes:
    packed: bytes = msgpack.packb([share.meta, share.share_chunks])
    return packed


def _unpack_untrusted(packed: bytes) -> libspu.Share:
    """The share in a message.

    Raises:
        ValueError: the message is not a share.
    """
    try:
        meta, chunks = msgpack.unpackb(packed)
        share = libspu.Share()
        share.meta, share.share_chunks = meta, chunks
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"a message that is not a share: {type(error).__name__}") from None
    return share
