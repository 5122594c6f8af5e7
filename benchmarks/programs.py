"""SPU programs that are measured: compiled and shared once, so that parties only compute.

``prepare`` compiles with JAX and splits the inputs into shares; ``Prepared`` is what a party
loads; ``check`` puts the parties' shares of the result together and compares with plaintext.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import spu
from numpy.typing import NDArray
from spu import libspu
from spu.utils import frontend

Array = NDArray[Any]
SEED: Final = 20260901
PSI_ID: Final = "id"


@dataclass(frozen=True)
class Program:
    """One computation.

    Attributes:
        title: for tables.
        protocol: of the SPU device.
        function: of JAX arrays.
        inputs: by name, in the order of the function's arguments.
        outputs: names of what it returns; those of inputs replace these for the next step.
        steps: how often it runs for one result.
        expected: what comes out after all steps, computed in plaintext, by name.
        tolerance: how far from it the result may be, absolutely.
    """

    title: str
    protocol: str
    function: Callable[..., Any]
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    steps: int
    expected: Mapping[str, Array]
    tolerance: float


# ---- the computations ----


def logistic_step(x: Any, y: Any, weights: Any, bias: Any) -> tuple[Any, Any]:
    """One step of full-batch gradient descent: (n, d), (n,), (d,), ()."""
    error = jax.nn.sigmoid(jnp.matmul(x, weights) + bias) - y
    rate = 1.0 / y.shape[0]
    return weights - rate * jnp.matmul(error, x), bias - rate * jnp.sum(error)


def logistic_regression(protocol: str, rows: int = 1000, columns: int = 10) -> Program:
    """Ten steps on made-up data."""
    random = np.random.default_rng(SEED)
    x = random.normal(size=(rows, columns)).astype(np.float32)
    truth = random.normal(size=columns)
    y = (x @ truth + 0.3 * random.normal(size=rows) > 0).astype(np.float32)
    weights, bias = np.zeros(columns), 0.0
    for _ in range(10):
        error = 1 / (1 + np.exp(-(x @ weights + bias))) - y
        weights, bias = weights - error @ x / rows, bias - error.sum() / rows
    inputs = {
        "x": x,
        "y": y,
        "weights": np.zeros(columns, np.float32),
        "bias": np.zeros((), np.float32),
    }
    return Program(
        f"logistic regression, {protocol}",
        protocol,
        logistic_step,
        inputs,
        ("weights", "bias"),
        10,
        {"weights": weights, "bias": np.asarray(bias)},
        0.1,
    )


def perceptron(x: Any, first: Any, second: Any, third: Any) -> Any:
    """Inference of three layers."""
    hidden = jax.nn.relu(jnp.matmul(x, first))
    return jnp.matmul(jax.nn.relu(jnp.matmul(hidden, second)), third)


def mlp(batch: int = 128) -> Program:
    """784-64-32-10, as for handwritten digits."""
    random = np.random.default_rng(SEED)
    sizes = (784, 64, 32, 10)
    x = random.uniform(size=(batch, sizes[0])).astype(np.float32)
    layers = [
        (random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
        for shape in itertools.pairwise(sizes)
    ]
    expected = np.maximum(np.maximum(x @ layers[0], 0) @ layers[1], 0) @ layers[2]
    inputs = {"x": x, **dict(zip(("first", "second", "third"), layers, strict=True))}
    return Program(
        f"MLP inference, batch {batch}, ABY3",
        "ABY3",
        perceptron,
        inputs,
        ("scores",),
        1,
        {"scores": expected},
        0.05,
    )


def sort_small(x: Any) -> Any:
    """Ascending."""
    return jnp.sort(x)


def sort(count: int = 1000) -> Program:
    """Sort secret numbers between two parties."""
    random = np.random.default_rng(SEED)
    x = random.uniform(-100, 100, size=count).astype(np.float32)
    return Program(
        f"sort of {count} numbers, CHEETAH",
        "CHEETAH",
        sort_small,
        {"x": x},
        ("sorted",),
        1,
        {"sorted": np.sort(x)},
        0.01,
    )


PROGRAMS: Final[dict[str, Callable[[], Program]]] = {
    "lr-aby3": lambda: logistic_regression("ABY3"),
    "lr-semi2k": lambda: logistic_regression("SEMI2K"),
    "mlp-aby3": mlp,
    "sort-cheetah": sort,
}


# ---- before the measurement ----


def runtime_config(protocol: str) -> Any:
    """The same for every transport."""
    return libspu.RuntimeConfig(
        protocol=libspu.ProtocolKind.__members__[protocol], field=libspu.FieldType.FM64
    )


def prepare(name: str, world_size: int, directory: Path) -> None:
    """Compile a program and share its inputs between ``world_size`` parties."""
    directory.mkdir(parents=True)
    program = PROGRAMS[name]()
    io = spu.Io(world_size, runtime_config(program.protocol))
    executable, _ = frontend.compile(
        frontend.Kind.JAX,
        program.function,
        list(program.inputs.values()),
        {},
        list(program.inputs),
        [libspu.Visibility.VIS_SECRET] * len(program.inputs),
        lambda _: list(program.outputs),
    )
    shares = {
        variable: io.make_shares(value, libspu.Visibility.VIS_SECRET)
        for variable, value in program.inputs.items()
    }
    common = {
        "protocol": program.protocol,
        "steps": program.steps,
        "outputs": list(program.outputs),
        "executable": [
            executable.name,
            list(executable.input_names),
            list(executable.output_names),
            executable.code,
        ],
    }
    for rank in range(world_size):
        own = {variable: _pack(parts[rank]) for variable, parts in shares.items()}
        (directory / f"rank{rank}").write_bytes(msgpack.packb(common | {"shares": own}))


class Prepared:
    """A program as one party has it."""

    def __init__(self, directory: Path, rank: int) -> None:
        content = msgpack.unpackb((directory / f"rank{rank}").read_bytes())
        self.config = runtime_config(content["protocol"])
        self.steps: int = content["steps"]
        self._outputs = content["outputs"]
        self._shares = {name: _unpack(share) for name, share in content["shares"].items()}
        self._executable = libspu.Executable()
        self._executable.name, inputs, outputs, code = content["executable"]
        self._executable.input_names, self._executable.output_names = inputs, outputs
        self._executable.code = code

    def run(self, runtime: spu.Runtime) -> None:
        """All steps, from the shared inputs on."""
        for name, share in self._shares.items():
            runtime.set_var(name, share)
        for _ in range(self.steps):
            runtime.run(self._executable)

    def save_result(self, runtime: spu.Runtime, path: Path) -> None:
        """Write this party's shares of the outputs, for `check`."""
        path.write_bytes(
            msgpack.packb({name: _pack(runtime.get_var(name)) for name in self._outputs})
        )


def check(name: str, paths: list[Path]) -> str | None:
    """What is wrong with the result of which these are the parties' shares; None if nothing."""
    program = PROGRAMS[name]()
    io = spu.Io(len(paths), runtime_config(program.protocol))
    parts = [msgpack.unpackb(path.read_bytes()) for path in paths]
    for output, expected in program.expected.items():
        found = np.asarray(io.reconstruct([_unpack(part[output]) for part in parts]))
        worst = float(np.max(np.abs(found - expected)))
        if not worst <= program.tolerance:
            return f"{name}: {output} is {worst:.3g} from the plaintext result"
    return None


def write_psi_inputs(directory: Path, rows: int) -> int:
    """``rank0.csv`` and ``rank1.csv``; returns how many ids they have in common."""
    directory.mkdir(parents=True)
    random = np.random.default_rng(SEED)
    common = rows // 2
    for rank in range(2):
        start = rank * (rows - common)
        ids = random.permutation(np.arange(start, start + rows))
        with (directory / f"rank{rank}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([PSI_ID, "value"])
            writer.writerows(_psi_rows(ids))
    return common


def _psi_rows(ids: Array) -> Iterator[tuple[str, int]]:
    return ((f"patient-{number:09d}", int(number) % 97) for number in ids)


def _pack(share: Any) -> list[Any]:
    return [share.meta, share.share_chunks]


def _unpack(packed: list[Any]) -> Any:
    share = libspu.Share()
    share.meta, share.share_chunks = packed
    return share
