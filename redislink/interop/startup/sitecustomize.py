"""Puts a stand-in in place of a module's own links, right after the program imports the module.

Rules:
- The first process calls `act`. A process that it starts imports this file at its start, because
  the directory is first on ``PYTHONPATH``, and does the same. Without the variable nothing happens.
- Another ``sitecustomize`` that would be imported, were this one not first, is imported too.
- Only the standard library, and any CPython from 3.8 on: a program may start another interpreter.
  One without redislink cannot import what has a stand-in. It never takes the module's own links
  instead, for which it would listen.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

VARIABLE = "REDISLINK_INTEROP"
"""No setting: the names of the stand-ins, for the processes that a program starts."""
_SIDECAR = "redislink_sidecar"
"""Needs no redislink: ``redislink sidecar`` puts its directory on the path."""
STAND_INS = {
    "brpc": ("spu.libspu", "redislink.interop.brpc"),
    "mplang-driver": ("mplang.backends.simp_driver.http", "redislink.interop.mplang.programs"),
    "mplang-simulator": ("mplang.backends.simp_driver.mem", "redislink.interop.mplang.programs"),
    "mplang-worker": ("mplang.backends.simp_worker.http", "redislink.interop.mplang.programs"),
    "ppd": ("examples.python.utils.distributed_impl", "redislink.interop.ppd"),
    "sidecar": ("spu.libspu", _SIDECAR),
    "sidecar-psi": ("spu.libpsi", _SIDECAR),
    "sidecar-secretflow": ("secretflow.distributed.fed.api", _SIDECAR),
    "sidecar-rayfed": ("fed.api", _SIDECAR),
}
"""By name: the module, and ours, whose ``install`` gets it."""
HERE = os.path.dirname(os.path.abspath(__file__))


class _Loader:
    """Loads a module as its own loader does, and then has the stand-in put in."""

    def __init__(self, loader: object, stand_in: str) -> None:
        self._loader = loader
        self._stand_in = stand_in

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then put the stand-in in."""
        self._loader.exec_module(module)  # type: ignore[attr-defined]
        try:
            ours = importlib.import_module(self._stand_in)
        except ImportError as error:
            raise ImportError(
                f"{module.__name__} was to run over redislink, which {sys.executable} cannot "
                f"import ({error}): install it there, or start that process without {VARIABLE}"
            ) from error
        ours.install(module)


class _Finder:
    """Finds the modules that have a stand-in wherever the others find them."""

    puts_in_stand_ins = True
    """As another copy of this class does, in a program that was started by one."""

    def __init__(self, stand_ins: dict[str, str]) -> None:
        self._stand_ins = stand_ins

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, with our loader around its loader."""
        if name not in self._stand_ins:
            return None
        for finder in sys.meta_path:
            if hasattr(finder, "puts_in_stand_ins"):
                continue
            spec = finder.find_spec(name, path, target)  # type: ignore[arg-type]
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._stand_ins[name])  # type: ignore[assignment]
                return spec
        return None


def act(*names: str) -> None:
    """Have these stand-ins put in, in this process and in those that it starts."""
    os.environ[VARIABLE] = ",".join(names)
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if HERE not in others:
        os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *others])
    _look_out(names)


def _look_out(names: tuple[str, ...] | list[str]) -> None:
    stand_ins = dict(STAND_INS[name] for name in names if name in STAND_INS)
    for module, stand_in in stand_ins.items():
        if module in sys.modules:
            importlib.import_module(stand_in).install(sys.modules[module])
    sys.meta_path.insert(0, _Finder(stand_ins))


def _import_hidden() -> None:
    """Import the ``sitecustomize`` that this one hides, under its name."""
    others = [path for path in sys.path if os.path.abspath(path or os.curdir) != HERE]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    _look_out(os.environ.get(VARIABLE, "").split(","))
    _import_hidden()
