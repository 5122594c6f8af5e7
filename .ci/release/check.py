"""Is this commit fit to be a release? Everything is done with a clean clone of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import helm
import images
import licences
from common import (
    RELEASE,
    REQUIREMENTS,
    REQUIREMENTS_DEMO,
    ROOT,
    ReleaseError,
    clone,
    commit_time,
    fresh,
    is_dirty,
    outside,
    run,
    step,
    tool,
    version,
)  # fmt: skip

_DATED = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", re.MULTILINE)


def check() -> None:
    """Check everything; build/release has what was made.

    Raises:
        ReleaseError: something is not as it must be.
    """
    fresh(RELEASE)
    if is_dirty():
        print("Note: what is not committed is not in this release.")
    with tempfile.TemporaryDirectory(prefix="redislink-release-") as name:
        work = Path(name)
        with step("a clean clone; CHANGELOG has this version, with a date"):
            source = work / "first"
            clone(source)
            check_changelog((source / "CHANGELOG.md").read_text(), version())
        dist = build_twice(source, work)
        with step("twine and check-wheel-contents"):
            run([tool("twine"), "check", "--strict", *sorted(dist.iterdir())])
            run([tool("check-wheel-contents"), "--toplevel", "redislink", *dist.glob("*.whl")])
        environment = try_out(source, wheel_for_here(dist), work / "elsewhere")
        with step("SBOM and licences of what was installed"):
            write_sbom(source, environment)
            write_licences(environment)
        with step("images: by digest, or listed in deploy/images.txt"):
            for exception in images.check():
                print(f"   by tag: {exception}")
        audit(source)
        with step("workflows: zizmor"):
            run([tool("zizmor"), "--offline", "--quiet", "--no-progress", source / ".github"])
        helm.check()
        with step("alerts: promtool"):
            run(["make", "--no-print-directory", "alerts"], cwd=ROOT)
    for path in sorted(dist.iterdir()):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(ROOT)}")
    print(f"redislink {version()} can be released: see build/release")


def check_changelog(text: str, number: str) -> None:
    """Raise ReleaseError unless the newest heading is this version's, with its date."""
    first = next((line for line in text.splitlines() if line.startswith("## ")), "")
    dated = _DATED.match(first)
    if dated is None or dated[1] != number:
        raise ReleaseError(
            f"CHANGELOG.md begins with {first!r}: make it '## [{number}] - YYYY-MM-DD', or change "
            "redislink/_version.py"
        )


def build(source: Path, target: Path, mask: int = 0o022) -> None:
    """Build what is published of a directory: an sdist and a wheel.

    If the wheel has an extension, it gets the tag that package indexes want (manylinux), and
    there is one without the extension too, for all other machines. OpenSSL stays the machine's own.
    """
    _hatchling(source, target, mask)
    (wheel,) = target.glob("*.whl")
    if wheel.name.endswith("-none-any.whl"):
        return
    _hatchling(source, target, mask, "-t", "wheel", HATCH_BUILD_NO_HOOKS="true")
    run(
        [
            *(tool("auditwheel"), "repair", "--exclude", "libcrypto.so.3", "--only-plat"),
            *("--wheel-dir", target, wheel),
        ],
        environment={
            **os.environ,
            "PATH": f"{tool('patchelf').parent}{os.pathsep}{os.environ['PATH']}",
            "SOURCE_DATE_EPOCH": commit_time(),
        },
    )
    wheel.unlink()


def _hatchling(source: Path, target: Path, mask: int, *options: str, **variables: str) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": commit_time(), **variables}
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *options, "--directory", str(target)],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        umask=mask,
    )
    if done.returncode:
        raise ReleaseError(f"the build failed:\n{done.stdout}{done.stderr}")


def wheel_for_here(dist: Path) -> Path:
    """The wheel that pip would take on this machine: with the extension, if there is one."""
    return min(dist.glob("*.whl"), key=lambda path: path.name.endswith("-none-any.whl"))


def build_twice(source: Path, work: Path) -> Path:
    """Build in two directories, and the wheel once more from the sdist: the bytes are the same."""
    with step("sdist and wheel: built twice, and the wheel from the sdist too"):
        dist = RELEASE / "dist"
        build(source, dist)
        second = work / "another" / "and-longer-path"
        clone(second, source)
        build(second, work / "again", mask=0o077)
        same_bytes(dist, work / "again", of="the two builds")
        (sdist,) = dist.glob("*.tar.gz")
        run(["tar", "-xzf", sdist, "-C", fresh(work / "unpacked")])
        (unpacked,) = (work / "unpacked").iterdir()
        build(unpacked, work / "from-sdist")
        same_bytes(dist, work / "from-sdist", of="the checkout and its sdist", pattern="*.whl")
    return dist


def same_bytes(one: Path, other: Path, *, of: str, pattern: str = "*") -> None:
    """Raise ReleaseError unless both directories have the same files."""
    names = [sorted(path.name for path in each.glob(pattern)) for each in (one, other)]
    if names[0] != names[1] or not names[0]:
        raise ReleaseError(f"{of} do not give the same files: {names}")
    for name in names[0]:
        if (one / name).read_bytes() != (other / name).read_bytes():
            held = [_members(each / name) for each in (one, other)]
            differ = sorted(n for n in held[0] | held[1] if held[0].get(n) != held[1].get(n))
            raise ReleaseError(f"{of} differ in {name}: {', '.join(differ) or 'its headers'}")


def _members(path: Path) -> dict[str, object]:
    """What an archive holds, and what is said of it there."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return {i.filename: (i.CRC, i.date_time, i.external_attr) for i in archive.infolist()}
    with tarfile.open(path) as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member)
            content = b"" if file is None else file.read()
            found[member.name] = (content, member.mtime, member.mode, member.uid, member.uname)
        return found


def try_out(source: Path, wheel: Path, place: Path) -> Path:
    """Install the wheel far from the checkout, and run the demo there. The environment's place."""
    with step("the wheel in a clean environment elsewhere: first as in production"):
        environment, python = place / "venv", place / "venv" / "bin" / "python"
        place.mkdir()
        run([sys.executable, "-m", "venv", environment])
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        run([*pip, "--only-binary", ":all:", "--require-hashes", "-r", source / REQUIREMENTS])
        run([*pip, "--no-deps", "--no-index", wheel])
        run([python, "-m", "pip", "--disable-pip-version-check", "check"])
        asked = in_clean(place, ["demo"])
        if asked.returncode != 2 or "pip install 'redislink[demo]'" not in asked.stderr:
            raise ReleaseError(f"the demo does not ask for its extra: {asked.stderr}")
    with step("… then the demo"):
        run([*pip, "--only-binary", ":all:", "--require-hashes", "-r", source / REQUIREMENTS_DEMO])
        demo = in_clean(place, ["demo", "--json"])
        if demo.returncode or json.loads(demo.stdout)["ok"] is not True:
            raise ReleaseError(f"the demo failed:\n{demo.stdout}{demo.stderr}")
        seconds = json.loads(demo.stdout)["seconds"]
        print(f"   ok, {seconds:.1f} s; {in_clean(place, ['version']).stdout.splitlines()[0]}")
    return environment


def in_clean(place: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run redislink as installed there."""
    return subprocess.run(
        [str(place / "venv" / "bin" / "redislink"), *words],
        cwd=place,
        env=outside(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def write_sbom(source: Path, environment: Path) -> None:
    """Write the software bill of materials (CycloneDX), without times or serial numbers."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    path = RELEASE / f"redislink-{version()}.cdx.json"
    run([
        *(tool("cyclonedx-py"), "environment", environment / "bin" / "python"),
        *("--pyproject", source / "pyproject.toml", "--mc-type", "library"),
        *("--output-reproducible", "--of", "JSON", "-o", path),
    ])  # fmt: skip
    bill = json.loads(path.read_text())
    bill["metadata"]["component"] |= {
        "version": version(),
        "purl": f"pkg:pypi/redislink@{version()}",
    }
    installers = {
        part["bom-ref"] for part in bill["components"] if part["name"] in ("pip", "setuptools")
    }
    for kind, key in (("components", "bom-ref"), ("dependencies", "ref")):
        bill[kind] = [each for each in bill[kind] if each[key] not in installers]
    for each in bill["dependencies"]:
        if "dependsOn" in each:
            each["dependsOn"] = [ref for ref in each["dependsOn"] if ref not in installers]
    path.write_text(json.dumps(bill, indent=2, sort_keys=True) + "\n")
    validator = JsonStrictValidator(SchemaVersion.from_version(bill["specVersion"]))
    if wrong := validator.validate_str(path.read_text()):
        raise ReleaseError(f"{path.name} is no bill of materials: {wrong}")
    print(f"   {path.relative_to(ROOT)}: {len(bill['components'])} components")


def write_licences(environment: Path) -> None:
    """Write the table of licences."""
    (packages,) = environment.glob("lib/python*/site-packages")
    found = [
        each
        for each in importlib.metadata.distributions(path=[str(packages)])
        if each.name not in ("pip", "setuptools")
    ]
    (RELEASE / "licences.md").write_text(licences.table(found))
    print(f"   build/release/licences.md: {len(found)} packages, all allowed")


def audit(source: Path) -> None:
    """Look for known vulnerabilities, if a database can be had.

    Raises:
        ReleaseError: a package has one.
    """
    with step("known vulnerabilities: pip-audit"):
        for database in ("pypi", "osv"):
            done = subprocess.run(
                [
                    *(str(tool("pip-audit")), "--vulnerability-service", database, "--format"),
                    *("json", "--disable-pip", "--require-hashes", "--progress-spinner", "off"),
                    *("--timeout", "20", "-r", str(source / REQUIREMENTS)),
                    *("-r", str(source / REQUIREMENTS_DEMO)),
                ],
                capture_output=True,
                text=True,
            )
            checked, found = read_audit(done.stdout)
            if found:
                raise ReleaseError("known vulnerabilities:\n" + "\n".join(found))
            if checked:
                print(f"   none known for {checked} packages ({database})")
                return
        print("   NOT CHECKED: no database could be had here (neither PyPI's nor OSV's)")


def read_audit(output: str) -> tuple[int, list[str]]:
    """How many packages the database knew, and what it knew against them.

    A database that does not answer skips each package, which is no error to pip-audit.
    """
    try:
        packages = json.loads(output)["dependencies"]
    except ValueError:  # it has failed, and said why on stderr
        return 0, []
    known = [each for each in packages if "vulns" in each]
    return len(known), [
        f"{each['name']} {each['version']}: {bug['id']}, mended in {bug['fix_versions']}"
        for each in known
        for bug in each["vulns"]
    ]
