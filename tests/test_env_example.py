"""`.env.example` lists every setting, with its default and what it means, and nothing else.

``python tests/test_env_example.py`` writes it anew after a change of `redislink.settings`.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from redislink.settings import RedisLinkSettings

FILE = Path(__file__).parent.parent / ".env.example"

_HEAD = """\
# Every setting of redislink, with its default (empty: none). Copy this file to .env, remove the
# "#" before a setting, and change it. A variable in the environment takes precedence.
# The cluster file holds what all parties share (names, keys, devices).
"""


def render() -> str:
    """What the file has to hold."""
    blocks = [_HEAD]
    for name, field in RedisLinkSettings.model_fields.items():
        description = textwrap.wrap(field.description or "", width=96)
        default = "" if field.default is None else field.default
        lines = [f"# {line}" for line in description]
        blocks.append("\n".join([*lines, f"#REDISLINK_{name.upper()}={default}\n"]))
    return "\n".join(blocks)


def test_env_example_lists_exactly_the_settings() -> None:
    assert FILE.read_text() == render(), f"run: python {Path(__file__).name} (see its docstring)"


def test_every_setting_says_what_it_is_and_times_have_a_unit() -> None:
    for name, field in RedisLinkSettings.model_fields.items():
        assert field.description, name
        if field.annotation is float or name.endswith("_ttl"):
            assert "econds" in field.description, name


def test_example_as_it_is_changes_nothing() -> None:
    assert RedisLinkSettings(_env_file=FILE) == RedisLinkSettings(_env_file=None)


if __name__ == "__main__":
    FILE.write_text(render())
