"""docs/cluster-file.md shows every field that the code reads.

``python docs/make_cluster_file.py`` writes the page anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pydantic import BaseModel

from redislink import ClusterSpec
from redislink.cluster import runtime, spec

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    import make_cluster_file

    monkeypatch.delitem(sys.modules, "make_cluster_file")
    return make_cluster_file


def test_the_page_is_what_the_code_says(maker: ModuleType) -> None:
    page = maker.PAGE.read_text(encoding="utf-8")
    assert page == maker.render(), "run: python docs/make_cluster_file.py"


def test_every_model_and_every_field_is_described(maker: ModuleType) -> None:
    models = {
        kind
        for module in (spec, runtime)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not BaseModel
    }
    assert set(maker.SECTIONS) == models
    for model in models:
        described = maker.descriptions(model)
        assert set(described) == set(model.model_fields), model
        assert all(text.endswith(".") for text in described.values()), model


def test_the_example_is_a_cluster_file(maker: ModuleType) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", maker.HEAD, re.S)
    content = yaml.safe_load(text)
    content["parties"] = [party["name"] for party in content["parties"]]
    assert ClusterSpec.parse(content).device("SP0").config.runtime.fxp_exp_mode == "EXP_TAYLOR"


def test_links_lead_to_sections(maker: ModuleType) -> None:
    page = maker.render()
    sections = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.*)$", page, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= sections
