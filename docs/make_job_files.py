"""Write the references of policy files and job files, from the models that read them.

python docs/make_job_files.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

from fields import code, descriptions
from pydantic import BaseModel

from redislink.jobs.policy import AgentLimits, JobLimits, Policy, Results, Rule
from redislink.jobs.rules import Window
from redislink.jobs.spec import JobSpec
from redislink.units import show_duration

_HERE: Final = Path(__file__).parent
_WRITTEN: Final = (
    "<!-- Written by docs/make_job_files.py from the code. Do not edit: run it again. -->"
)


class Page(NamedTuple):
    """One page: its path, what stands above the tables, and each model with its title."""

    path: Path
    head: str
    sections: dict[type, str]
    foot: str = ""


NAMES: Final = 'a name, a list of names, or `"*"`'
KINDS: Final = {
    "Rule.name": "text",
    "Rule.action": "`accept`, `ask`, `refuse`",
    "Rule.arguments": 'a JSON Schema, or `"*"`',
    "Rule.window": "[window](#window)",
    "Rule.results": "[results](#results)",
    "Rule.logs": "`to_driver`, `none`",
    "Rule.limits": "[limits of a rule](#limits-of-a-rule)",
    "Policy.rules": "a list: [Each of rules](#each-of-rules)",
    "Policy.data": "a mapping of names to paths",
    "Policy.limits": "[limits](#limits)",
    "Window.days": "a list of days",
    "Window.begins": "text",
    "Window.ends": "text",
    "Window.zone": "text",
    "AgentLimits.jobs": "a number, 1 to 1000",
    "JobSpec.program": "text",
    "JobSpec.name": "text",
    "JobSpec.attach": "`true`, `false`",
    "JobSpec.arguments": "a list, or a mapping",
    "JobSpec.data": "a name, a list of names, or a mapping of parties to these",
}
"""What a field takes, where its annotation does not say it."""

POLICY: Final = Page(
    _HERE / "policy-file.md",
    f"""\
# The policy file

Which fields does a policy have? [Policies](how-to/policies.md) says how to write one, and `redislink policy check FILE` checks
it. The file is YAML; nobody but its owner may be able to write to it. A field that is not listed here, or occurs twice, is
refused with an error that names the line. Durations and sizes have a unit: `90s`, `30m`, `2h`, `7d`, `2w`; `500MB`, `8GiB`.

{_WRITTEN}

```yaml
rules:
  - name: nightly training
    driver: coordinator
    program: lr-train
    arguments:
      type: object
      properties: {{epochs: {{type: integer, minimum: 1, maximum: 100}}}}
      additionalProperties: false
    data: [patients]
    devices: [SP0]
    parties: [alice, bob, carol]
    window: {{days: [mon, tue, wed, thu, fri], from: "20:00", to: "06:00", zone: Europe/Berlin}}
    action: accept
    results: {{to_driver: [weights]}}
    logs: to_driver
    limits: {{wall: 2h, cpu: 4h, memory: 8GiB, disk: 10GiB}}
  - name: everything else of the coordinator
    driver: coordinator
    action: ask
data: {{patients: /srv/data/patients.csv}}
limits: {{jobs: 2, disk: 50GiB}}
longest_offer: 7d
```
""",
    {
        Policy: "The file",
        Rule: "Each of rules",
        Window: "window",
        Results: "results",
        JobLimits: "limits of a rule",
        AgentLimits: "limits",
    },
    """\
## arguments

`arguments` is a JSON Schema (Draft 2020-12) that the job's arguments must match: an object of options, or an array of words.
JSON Schema lets through what it does not mention. In a policy that would accept what nobody has thought of, so these are
errors when the file is read:

- At the top, `type` must be `object` or `array` (or both), with `additionalProperties` or `items`. Write
  `additionalProperties: false` to accept no option but those in `properties`.
- A keyword that speaks of one type (`maximum`, `maxLength`, `required`, …) must have that `type` beside it.
- Unknown keywords, `format`, `patternProperties`, `$id`, other drafts, and any `$ref` but `#/$defs/NAME`.
- A `pattern` must begin with `^` and end with `$`, and must match the whole text, of at most 256 characters. Patterns that some
  texts would keep busy for ever are refused: those that repeat a group in which something repeats or varies, as in `(a+)*`,
  and those with more than four parts that repeat.
""",
)
JOB: Final = Page(
    _HERE / "job-file.md",
    f"""\
# The job file

Which fields does a job file have? `redislink policy check POLICY JOB --driver NAME` says what a policy would decide about
it. The file is YAML. A field that is not listed here, or occurs twice, is refused with an error that names the line.

{_WRITTEN}

```yaml
program: logistic_regression.py
name: lr-train
arguments: {{epochs: 3, plaintext: true}}
data: {{alice: patients, bob: [patients, loans]}}
parties: [alice, bob, carol]
devices: SP0
results: weights
expires: 2h
```
""",
    {JobSpec: "The file"},
    """\
## arguments

Arguments are JSON: texts, numbers, `true`, `false`, `null`. Each becomes words of the program's command line, and nothing
else. In a mapping, `epochs: 3` becomes `--epochs=3` in one word, so that a text which begins with `-` stays a value;
`true` becomes the option alone; `false` and `null` become nothing; and a list repeats the option. A list of arguments gives
one word for each text or number, as it stands. There may be 1000 words, of at most 4096 characters each, and 64 KiB in all.
""",
)
PAGES: Final = (POLICY, JOB)


def render(page: Page) -> str:
    """What the page has to hold."""
    blocks = [page.head]
    for model, title in page.sections.items():
        about = inspect.cleandoc(model.__doc__ or "").split("\n\nAttributes:")[0]
        rows = "".join(_row(model, name) for name in _fields(model))
        blocks.append(
            f"## {title}\n\n{code(about)}\n\n"
            f"| field | value | default | meaning |\n|---|---|---|---|\n{rows}"
        )
    return "\n".join([*blocks, page.foot])


def _fields(model: type) -> list[str]:
    if issubclass(model, BaseModel):
        return list(model.model_fields)
    return [field.name for field in dataclasses.fields(model)]


def _row(model: Any, name: str) -> str:
    field = model.model_fields[name] if issubclass(model, BaseModel) else None
    shown = name if field is None or field.alias is None else field.alias
    kind = KINDS.get(f"{model.__name__}.{name}") or _kind(str(model.__annotations__[name]))
    meaning = code(descriptions(model)[name])
    default = "none" if field is None else _default(field, kind)
    if meaning.startswith("condition: "):
        default = "any"
    return f"| `{shown}` | {kind} | {default} | {meaning} |\n"


def _kind(annotation: str) -> str:
    found = re.match(r"_?(Names|Duration|Size)", annotation)
    return {"Names": NAMES, "Duration": "a duration", "Size": "a size"}[found[1] if found else ""]


def _default(field: Any, kind: str) -> str:
    if field.is_required():
        return "required"
    if kind == "a duration":
        return f"`{show_duration(field.default)}`"
    if isinstance(field.default, str) and field.default:
        return f"`{field.default}`"
    if field.default is False:
        return "`false`"
    if field.default is None or not field.default or isinstance(field.default, tuple):
        return "all" if kind == "a list of days" else "none"
    return "none"


if __name__ == "__main__":
    for page in PAGES:
        page.path.write_text(render(page), encoding="utf-8")
        print(page.path)
