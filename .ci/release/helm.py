"""The chart: linted and rendered by Helm's own code, and the same as the manifests beside it.

Helm comes as a library (helm-python-sdk). tests/deploy/ checks the manifests in deploy/kubernetes,
and what the chart renders is held against them here, so that what is true of these is true of it.
"""

from __future__ import annotations

import json
from typing import Any

import yaml
from common import ROOT, ReleaseError, step

CHART = ROOT / "deploy" / "helm" / "redislink"
MANIFESTS = ROOT / "deploy" / "kubernetes"
KUBERNETES = ("1.31", "1.37")
_OF_HELM = {"app.kubernetes.io/managed-by", "helm.sh/chart"}
_NAMED = {"env", "volumes", "volumeMounts"}
"""Lists in which the order has no meaning."""
_LEFT_OUT = {"Namespace", "Secret"}


def objects(text: str) -> list[dict[str, Any]]:
    """The objects of a file."""
    return [each for each in yaml.safe_load_all(text) if each]


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """The objects of deploy/kubernetes, without those that the chart leaves to others."""
    found = [o for path in sorted(MANIFESTS.glob("*.yaml")) for o in objects(path.read_text())]
    return {(o["kind"], o["metadata"]["name"]): o for o in found if o["kind"] not in _LEFT_OUT}


def everything_on() -> dict[str, Any]:
    """Values under which the chart makes what the manifests make."""
    shown = manifests()["ConfigMap", "redislink-party-alice"]["data"]["cluster.yaml"]
    return {"cluster": shown} | {part: {"enabled": True} for part in ("run", "agent", "broker")}


def comparable(each: Any, key: str = "") -> Any:
    """An object without what only one of both has, and may have."""
    if isinstance(each, dict):
        found = {
            name: comparable(value, name)
            for name, value in each.items()
            if name not in (*_OF_HELM, "annotations")
        }
        return {name: value for name, value in found.items() if (name, value) != ("labels", {})}
    if isinstance(each, list):
        found_list = [comparable(one) for one in each]
        return sorted(found_list, key=json.dumps) if key in _NAMED else found_list
    return each


def check() -> None:
    """Lint and render the chart, and compare.

    Raises:
        ReleaseError: something is wrong with it.
    """
    with step("the Helm chart: lint, schema of values, rendered and held against the manifests"):
        import helm_python

        _lint(helm_python)
        with helm_python.Chart.load(str(CHART)) as chart:
            _schema(helm_python, chart)
            rendered = _render(chart, everything_on())
            _validate(rendered)
            _compare(rendered)
            _variants(chart)
        print(f"   {len(rendered)} objects, valid for Kubernetes {' and '.join(KUBERNETES)}")


def _lint(helm: Any) -> None:
    for values in ({}, everything_on()):
        report = helm.lint(str(CHART), values, strict=True, kube_version="v1.37.0")
        said = [m for m in report["messages"] if m["severity"] > 1]
        if said or report["errors"]:
            raise ReleaseError(f"helm lint: {said or report['errors']}")


def _schema(helm: Any, chart: Any) -> None:
    digest = "sha256:" + 64 * "0"
    chart.validate_schema(everything_on())
    for wrong in (
        {"party": "Alice"},
        {"partie": "alice"},
        {"run": {"enabled": True}},  # without a cluster file
        {"image": {"repository": "registry.example/x", "tag": "latest"}},
        {"image": {"repository": "registry.example/x", "digest": digest[:-1]}},
        {"settings": {"REDISLINK_BROKER_URL": "rediss://a:secret@broker"}},
        {"agent": {"resources": {"limits": {"memory": None}}}},
    ):
        try:
            chart.validate_schema(wrong)
        except helm.HelmError:
            continue
        raise ReleaseError(f"the schema of the chart's values takes {wrong}")


def _render(chart: Any, values: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    files = chart.render(values, name="redislink", namespace="redislink")
    found = [o for name, text in files.items() if name.endswith(".yaml") for o in objects(text)]
    by_name = {(o["kind"], o["metadata"]["name"]): o for o in found}
    if len(by_name) != len(found):
        raise ReleaseError("the chart renders two objects of the same name")
    return by_name


def _validate(rendered: dict[tuple[str, str], dict[str, Any]]) -> None:
    import kubernetes_validate

    for name, each in rendered.items():
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(each, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                raise ReleaseError(f"{name} is not valid for {version}: {error.message}") from None


def _compare(rendered: dict[tuple[str, str], dict[str, Any]]) -> None:
    expected = manifests()
    # The chart's policy is that of one party, so that two releases in a namespace do not meet.
    policy = expected.pop(("NetworkPolicy", "redislink-party"))
    policy["metadata"]["name"] += "-alice"
    policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] = "alice"
    expected["NetworkPolicy", "redislink-party-alice"] = policy
    if set(rendered) != set(expected):
        raise ReleaseError(f"chart and manifests: {sorted(set(rendered) ^ set(expected))}")
    for name, each in rendered.items():
        ours, theirs = comparable(each), comparable(expected[name])
        if ours != theirs:
            raise ReleaseError(f"chart and manifests differ in {name}: {_difference(ours, theirs)}")


def _difference(one: Any, other: Any, where: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            if one.get(name) != other.get(name):
                return _difference(one.get(name), other.get(name), f"{where}.{name}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            if left != right:
                return _difference(left, right, f"{where}[{number}]")
    return f"{where}: {one!r} and {other!r}"


def _variants(chart: Any) -> None:
    """What values change is where it belongs."""
    digest = "sha256:" + 64 * "0"
    egress = [
        {
            "to": [{"ipBlock": {"cidr": "192.0.2.10/32"}}],
            "ports": [{"protocol": "TCP", "port": 6380}],
        }
    ]
    values = everything_on() | {
        "party": "bob",
        "image": {"repository": "registry.example/own", "digest": digest},
        "secretName": "of-bob",
        "settings": {"REDISLINK_BROKER_PROXY": "http://proxy.example:3128"},
        "networkPolicy": {"egress": egress, "brokerFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        "broker": {"enabled": True, "maxmemory": "4gb"},
    }
    rendered = _render(chart, values)
    _validate(rendered)
    text = json.dumps(list(rendered.values()))
    for part in (
        f"registry.example/own@{digest}", "192.0.2.10/32", "10.0.0.0/8", "of-bob",
        "http://proxy.example:3128", "\\nmaxmemory 4gb\\n",
    ):  # fmt: skip
        if part not in text:
            raise ReleaseError(f"the chart loses {part}")
    if "alice" in json.dumps([o for o in rendered.values() if o["kind"] != "ConfigMap"]):
        raise ReleaseError("the chart names alice in a release of bob's")
    if _render(chart, {}):
        raise ReleaseError("the chart makes objects although nothing is on")
