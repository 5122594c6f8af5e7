"""Builds the optional extension `redislink._native`: into a wheel, or for an editable install.

Where there is no C compiler or no Python.h, redislink is installed without it, and runs as Python.
Where there are no headers of OpenSSL, the extension is built without sealing.

``python hatch_build.py`` builds it for the checkout that this file is in.
"""

from __future__ import annotations

import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCE = "redislink/_native.c"
_NAME = "_native" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
_BUILT = f"build/native/{_NAME}"
_OPTIONS = (
    *("-O2", "-fPIC", "-Wall", "-fvisibility=hidden", "-fstack-protector-strong"),
    *("-g0", "-DNDEBUG"),  # else the bytes depend on the directory, which both would name
)
_WAYS = (("-DWITH_OPENSSL", "-lcrypto"), ())


class NativeHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling calls it before it builds."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling's documentation of build hooks."""
        root = Path(self.root)
        if version == "editable":
            reason = build_for_checkout(root)
        else:
            reason = _compile(root, root / _BUILT)
            if not reason:
                build_data["force_include"][str(root / _BUILT)] = f"redislink/{_NAME}"
                build_data["pure_python"] = False
                build_data["infer_tag"] = True
        self.app.display_info(f"redislink: {reason or 'native leaves are built'}")


def build_for_checkout(root: Path) -> str:
    """Put it beside its source, or remove an old one. Return "", or why there is none."""
    installed = root / "redislink" / _NAME
    reason = _compile(root, root / _BUILT)
    if reason:
        installed.unlink(missing_ok=True)
    else:
        (root / _BUILT).replace(installed)  # never written in place: a process may have it loaded
    return reason


def _compile(root: Path, target: Path) -> str:
    """Return "", or why there is no extension."""
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return f"no native leaves: no Python.h in {sysconfig.get_path('include')}"
    target.parent.mkdir(parents=True, exist_ok=True)
    linker = shlex.split(sysconfig.get_config_var("LDSHARED") or "cc -shared")
    said = ""
    for way in _WAYS:
        define, library = way[:1], way[1:]
        command = [*linker, *_OPTIONS, *define, "-I" + sysconfig.get_path("include")]
        command += [_SOURCE, "-o", str(target), *library]
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        except OSError as error:
            return f"no native leaves: no C compiler ({error})"
        if not done.returncode:
            return ""
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
    return f"no native leaves: {said}"


if __name__ == "__main__":
    print(build_for_checkout(Path(__file__).parent) or "native leaves are built")
