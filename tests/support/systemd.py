"""What stands in for root, apt and systemd where a page's commands are typed by a test.

`install_commands` puts commands of these names into a directory for the PATH. ``systemctl`` starts
what the unit says, where the unit says; ``sudo`` runs what follows; ``install`` leaves out owner
and group; ``apt-get`` and ``useradd`` do nothing.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil

_READY: Final = "eady to accept connections"
_SHELL: Final = {
    "sudo": 'exec "$@"',
    "apt-get": "exit 0",
    "useradd": "exit 0",
    "install": """
words=()
while [ "$#" -gt 0 ]; do
  case $1 in -o | -g) shift ;; *) words+=("$1") ;; esac
  shift
done
exec {install} "${{words[@]}}"
""",
}


def install_commands(directory: Path, root: Path, *options: str) -> None:
    """Write the commands.

    Args:
        directory: for the PATH.
        root: what is ``/`` to them.
        options: that the server gets besides those of its unit.
    """
    directory.mkdir()
    (root / "etc" / "systemd" / "system").mkdir(parents=True)
    for name, body in _SHELL.items():
        if name == "install":
            body = body.format(install=shutil.which("install"))
        _write(directory / name, f"#!/usr/bin/env bash\n{body}\n")
    words = shlex.join([sys.executable, "-m", __name__, str(root), *options])
    _write(
        directory / "systemctl",
        f"#!/usr/bin/env bash\nPYTHONPATH={shlex.quote(str(Path(__file__).parents[2]))} "
        f'exec {words} -- "$@"\n',
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def systemctl(root: Path, options: list[str], command: str, unit: str) -> None:
    """``enable --now``, ``restart`` and ``stop`` of a unit with a server that is Redis."""
    path = root / "etc" / "systemd" / "system" / f"{unit}.service"
    if command in ("enable", "restart") or (command == "stop" and path.exists()):
        stop(root, unit)
    if command in ("enable", "restart"):
        lines = (line.partition("=") for line in path.read_text().splitlines())
        service = {name: value for name, _, value in lines}
        with (root / f"{unit}.log").open("w+") as log:
            server = subprocess.Popen(
                [*shlex.split(service["ExecStart"]), *options],
                cwd=f"{root}{service['WorkingDirectory']}",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            (root / f"{unit}.pid").write_text(str(server.pid))
            while _READY not in (said := Path(log.name).read_text()):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(0.02)
                    raise SystemExit(f"{unit} did not start:\n{said}")


def stop(root: Path, unit: str) -> None:
    """End the unit's server, if it runs."""
    path = root / f"{unit}.pid"
    with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
        server = psutil.Process(int(path.read_text()))
        server.terminate()
        server.wait(30)
    path.unlink(missing_ok=True)


if __name__ == "__main__":
    rest = sys.argv[sys.argv.index("--") + 1 :]
    words = [word for word in rest if not word.startswith("-")]
    if len(words) == 2:  # daemon-reload has nothing to do
        systemctl(Path(sys.argv[1]), sys.argv[2 : sys.argv.index("--")], *words)
