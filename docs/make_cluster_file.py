"""Write the reference of the cluster file, from the models that read it.

python docs/make_cluster_file.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, Final

from fields import code, descriptions
from pydantic import BaseModel
from spu import libspu

from redislink.cluster import ClusterSpec, DeviceSpec, DriverSpec, PartySpec, SpuConfig
from redislink.cluster.runtime import (
    REFUSED,
    CheetahConfig,
    ClientSslConfig,
    SpuRuntime,
    TtpBeaverConfig,
)

PAGE: Final = Path(__file__).parent / "cluster-file.md"
SECTIONS: Final[dict[type[BaseModel], str]] = {
    ClusterSpec: "The file",
    PartySpec: "Each of parties",
    DriverSpec: "Each of drivers",
    DeviceSpec: "Each of devices",
    SpuConfig: "config",
    SpuRuntime: "config.runtime",
    CheetahConfig: "config.runtime.cheetah_2pc_config",
    TtpBeaverConfig: "config.runtime.ttp_beaver_config",
    ClientSslConfig: "config.runtime.ttp_beaver_config.ssl_config",
}
HEAD: Final = """\
# The cluster file

Which fields does a cluster file have? Every party has the same file; `redislink fingerprint --cluster
FILE` shows its digest, which covers everything except `broker`. The file is YAML. A field that is not
listed here, or occurs twice, is refused with an error that names the line. SPU's documentation
says how the fields of `config.runtime` affect numbers and speed.

`redislink init` makes this file from what the parties tell it; see [the tutorial](tutorial.md#3-make-the-cluster-file). You
need not read on unless you want other devices, or to [write it by hand](#write-it-by-hand).

<!-- Written by docs/make_cluster_file.py from the code. Do not edit: run it again. -->

```yaml
session: salaries
parties:                             # in rank order: each a name, or a mapping
  - {name: alice, public_key: "x25519:…"}
  - {name: bob, public_key: "x25519:…"}
  - {name: carol, public_key: "x25519:…"}
devices:
  SP0:
    kind: SPU
    members: [alice, bob, carol]
    config:
      protocol: ABY3
      field: FM64
      runtime: {fxp_exp_mode: EXP_TAYLOR}
```
"""
BY_HAND: Final = """\
## Write it by hand

Do so where `redislink init` does not make the file that you need. Each party makes its key on its own machine:

```sh
redislink keygen alice --out identity.key
```

This prints the party's line for `parties`, which is not secret; with `--driver`, the line of a driver. One person puts the
lines into a file as above, and everybody gets a copy. Then all [compare fingerprints](security.md#keys-make-exchange-compare).
The commands take the file by `--cluster` and the key by `--identity`, or from `REDISLINK_CLUSTER_FILE`, `REDISLINK_PARTY` and
`REDISLINK_IDENTITY_FILE`, which may stand in `.env`:

```ini
REDISLINK_CLUSTER_FILE=cluster.yaml
REDISLINK_PARTY=alice
REDISLINK_IDENTITY_FILE=identity.key
```
"""


def render() -> str:
    """What the page has to hold."""
    blocks = [HEAD]
    for model, title in SECTIONS.items():
        about = inspect.cleandoc(model.__doc__ or "").split("\n\nAttributes:")[0]
        rows = "".join(_row(model, name) for name in model.model_fields)
        blocks.append(
            f"## {title}\n\n{code(about)}\n\n"
            f"| field | value | default | meaning |\n|---|---|---|---|\n{rows}"
        )
    refused = "".join(f"- `{name}`: {reason}\n" for name, reason in REFUSED.items())
    blocks.append(
        "## Fields that config.runtime refuses\n\n"
        f"These fields of SPU's `RuntimeConfig` are refused there:\n\n{refused}"
    )
    return "\n".join([*blocks, BY_HAND])


def _row(model: type[BaseModel], name: str) -> str:
    schema = model.model_json_schema()
    kinds = [schema["properties"][name], *schema["properties"][name].get("anyOf", [])]
    what = next(text for kind in kinds if (text := _what(kind)) is not None)
    meaning = code(descriptions(model)[name])
    return f"| `{name}` | {what} | {_default(model, name)} | {meaning} |\n"


def _what(kind: dict[str, Any]) -> str | None:
    """The values of a field, from its JSON schema; None if that does not say it."""
    if "$ref" in kind:
        return _link(kind["$ref"])
    if "const" in kind or "enum" in kind:
        return ", ".join(f"`{choice}`" for choice in kind.get("enum") or [kind["const"]])
    match kind.get("type"):
        case "boolean":
            return "`true`, `false`"
        case "integer":
            return f"a number, {kind['minimum']} to {kind['maximum']}"
        case "string":
            return "text"
        case "array":
            item = _what(kind["items"])
            most = f" to {kind['maxItems']}" if "maxItems" in kind else " or more"
            return f"a list of {kind.get('minItems', 0)}{most}: {item}"
        case "object":
            return f"a mapping: {_what(kind['additionalProperties'])}"
    return None


def _link(reference: str) -> str:
    (title,) = (
        title for model, title in SECTIONS.items() if model.__name__ == reference.split("/")[-1]
    )
    anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
    return f"[{title}](#{anchor})"


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    if field.default is None:
        return _default_of_spu(model, name)
    if isinstance(field.default, BaseModel | dict):
        return "none"
    return f"`{str(field.default).lower() if field.default is True else field.default}`"


def _default_of_spu(model: type[BaseModel], name: str) -> str:
    if model is SpuRuntime and not name.endswith("_config"):
        value = getattr(libspu.RuntimeConfig(), name)
        return f"SPU's: `{str(getattr(value, 'name', value)).replace('False', 'false')}`"
    return {"ot_kind": "SPU's: `YACL_Ferret`"}.get(
        name, "SPU's: `false`" if model is CheetahConfig else "none"
    )


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)
