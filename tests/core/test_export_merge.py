from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.merge import Adapter, MergedRows, Weights
from ollama_tune.core.export.tensors import TensorPlan, plan_tensors
from ollama_tune.core.models.architectures import read_config
from tests.core.export_parts import build_adapter, build_llama, load


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama(tmp_path_factory.mktemp("base"))


def plans_of(base: Path, adapter: Adapter) -> tuple[Weights, dict[str, TensorPlan]]:
    weights = Weights.of_model(base)
    plans = plan_tensors(read_config(base), weights.shapes, adapter.modules)
    adapter.check_targets(plans)
    return weights, {f"{plan.module}.weight": plan for plan in plans}


def straight(plan: TensorPlan) -> TensorPlan:
    """The same tensor in the order of the base."""
    return TensorPlan(plan.name, plan.keys, plan.modules, plan.shape)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"r": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3, "v_proj": 64}},
    ],
    ids=["plain", "rank stabilised", "patterns"],
)
def test_merged_rows_equal_those_that_peft_merges(
    base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = build_adapter(base, tmp_path / "adapter", **changes)
    merged = load(base, folder).merge_and_unload().state_dict()
    adapter = Adapter(folder)
    weights, plans = plans_of(base, adapter)
    rows = MergedRows(weights, adapter)
    for module in adapter.modules:
        plan = straight(plans[f"{module}.weight"])
        torch.testing.assert_close(rows.rows(plan, 0, plan.rows), merged[plan.key], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(
            rows.rows(plan, 3, 9), rows.rows(plan, 0, plan.rows)[3:9], atol=2e-6, rtol=1e-5
        )


def test_a_part_of_permuted_rows_is_that_part_of_all(base: Path, tmp_path: Path) -> None:
    adapter = Adapter(build_adapter(base, tmp_path / "adapter"))
    weights, plans = plans_of(base, adapter)
    plan = plans["model.layers.0.self_attn.q_proj.weight"]
    rows = MergedRows(weights, adapter)
    whole = rows.rows(plan, 0, 64)
    assert not torch.equal(whole, rows.rows(straight(plan), 0, 64))
    torch.testing.assert_close(rows.rows(plan, 13, 39), whole[13:39])
    # Row 1 of a head of 16 is the partner of row 0: its row 8 in transformers' order.
    torch.testing.assert_close(whole[1], rows.rows(straight(plan), 8, 9)[0])


def test_shards_hold_the_same_rows_as_one_file(base: Path, tmp_path: Path) -> None:
    sharded = build_llama(tmp_path / "sharded", shard="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, many = Weights.of_model(base), Weights.of_model(sharded)
    assert one.shapes.keys() == many.shapes.keys()
    for name, shape in one.shapes.items():
        assert torch.equal(one.rows(name, 0, shape[0]), many.rows(name, 0, shape[0]))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"r": 5}, "rank 4"),
        ({"lora_alpha": "much"}, "alpha"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(
    base: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    folder = build_adapter(base, tmp_path / "adapter")
    change_config(folder, **changes)
    with pytest.raises(TuneError, match=named):
        Adapter(folder)


def test_an_adapted_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    folder = build_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(TuneError, match="lora_embedding"):
        Adapter(folder)


def test_half_a_pair_is_refused(base: Path, tmp_path: Path) -> None:
    folder = build_adapter(base, tmp_path / "adapter")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    change_tensors(folder, lambda tensors: tensors.__delitem__(name))
    with pytest.raises(TuneError, match=r"layers\.0\.self_attn\.q_proj\.lora_A"):
        Adapter(folder)


def test_targets_that_the_base_lacks_are_listed(base: Path, tmp_path: Path) -> None:
    deeper = build_llama(tmp_path / "deeper", num_hidden_layers=3)
    adapter = Adapter(build_adapter(deeper, tmp_path / "adapter"))
    with pytest.raises(TuneError, match=r"7 modules .*model\.layers\.2\.mlp\.up_proj"):
        plans_of(base, adapter)


def test_an_adapter_of_another_width_is_refused(base: Path, tmp_path: Path) -> None:
    wider = build_llama(tmp_path / "wider", intermediate_size=256)
    adapter = Adapter(build_adapter(wider, tmp_path / "adapter"))
    with pytest.raises(TuneError, match=r"mlp\.\w+ has the shape"):
        plans_of(base, adapter)


def test_a_cut_file_is_refused_before_and_while_reading(base: Path, tmp_path: Path) -> None:
    data = (base / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TuneError, match="not a whole safetensors file"):
        Weights([path])
    path.write_bytes(data)
    weights = Weights([path])
    path.write_bytes(data[:-1000])
    last, shape = list(weights.shapes.items())[-1]
    with pytest.raises(TuneError, match="shorter"):
        weights.rows(last, 0, shape[0])


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0[1,2]", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(TuneError, match="not a whole safetensors file"):
        Weights([path])


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4, 4, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    with pytest.raises(TuneError, match="U8, not 16 or 32 bit"):
        Weights([tmp_path / "model.safetensors"])
