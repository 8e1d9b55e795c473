"""Settings that exclude each other: told with the line of each, and never made by a recommendation."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, get_args

import pytest

from ollama_tune.core.plan.recommend import make_plan
from ollama_tune.core.plan.refusal import SettingsError
from ollama_tune.core.plan.settings import Method, Settings, Sharding, load, parse
from tests.cases import SHORT, TINY, machine

FILE = """\
data:
  path: bundled
training:
  method: prompt
  packing: true
  dora: true
export:
  name: kitchen
"""


def test_every_conflict_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    with pytest.raises(SettingsError, match="has 3 mistakes") as caught:
        load(path)
    found = {mistake.field: mistake.line for mistake in caught.value.mistakes}
    assert found == {"training.packing": 5, "training.dora": 6, "export.name": 8}
    assert "set packing to no" in caught.value.what


def test_a_conflict_stands_where_the_file_names_one_of_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("training:\n  rank: 8\n  compute_dtype: float16\n")
    with pytest.raises(SettingsError, match=r"line 3: These settings do not go together: .* needs a GPU"):
        load(path)


def test_a_conflict_of_values_alone_names_its_field() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings().with_values({"training.method": "full", "training.quantization": "nf4"})
    assert [(each.field, each.line) for each in caught.value.mistakes] == [("training.quantization", None)]


WISHES: list[dict[str, Any]] = [
    {"training.method": method, "training.sharding": sharding, "training.gpus": gpus}
    for method, sharding, gpus in itertools.product(get_args(Method), get_args(Sharding), (0, 2))
]


@pytest.mark.parametrize("box", [{}, {"gpu": 24}])
def test_what_is_recommended_around_a_wish_is_always_possible(box: dict[str, Any]) -> None:
    here = machine(**box)
    for wish in WISHES:
        if wish["training.sharding"] == "fsdp" and wish["training.method"] != "lora":
            continue
        settings = make_plan(here, TINY, SHORT, wish).settings
        assert parse(settings.model_dump()) == settings, wish
