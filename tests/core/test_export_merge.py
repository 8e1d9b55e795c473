"""Rows of base + adapter against what transformers and PEFT compute."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.gguf import export_gguf
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.merge import open_merged
from ollama_tune.core.export.tensors import TensorPlan, plan_tensors
from ollama_tune.core.export.weights import Weights
from ollama_tune.core.models.architectures import read_config
from tests.core.export_parts import (
    PROMPT,
    build_adapter,
    build_any_adapter,
    build_family,
    build_llama,
    load,
    load_any,
    log_probabilities,
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama(
        tmp_path_factory.mktemp("untied"), tie_word_embeddings=False, attention_bias=True, mlp_bias=True
    )


def straight(name: str, shape: tuple[int, ...]) -> TensorPlan:
    """A tensor in the order of the base."""
    return TensorPlan(name, (name,), (name.rpartition(".")[0],), shape)


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the tuned model as this package computes it."""
    with open_merged(base, adapter) as rows:
        plans = [straight(name, shape) for name, shape in rows.shapes.items()]
        rows.check(plans)
        return {plan.name: rows.rows(plan, 0, plan.rows).reshape(plan.shape) for plan in plans}


def assert_equal(ours: dict[str, torch.Tensor], model: Any) -> None:
    theirs = model.merge_and_unload().state_dict()
    assert theirs.keys() - ours.keys() <= {HEAD}  # tied
    for name, values in ours.items():
        torch.testing.assert_close(
            values, theirs[name], atol=3e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


SAVED = {
    "plain": {},
    "all linear": {"target_modules": "all-linear"},
    "rank stabilised": {"use_rslora": True},
    "patterns": {
        "target_modules": "all-linear",
        "r": 8,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"layers.1.mlp.up_proj": 3, "^model.layers.0.self_attn.v_proj": 64},
    },
    "weight decomposed": {"target_modules": "all-linear", "use_dora": True},
    "weight decomposed, rank stabilised": {"use_dora": True, "use_rslora": True},
    "orthogonal start": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("changes", SAVED.values(), ids=SAVED.keys())
def test_merged_rows_equal_those_that_peft_merges(
    base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", **changes)
    assert_equal(merged(base, folder), load_any(base, folder))


UNTIED = {
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embedding and head": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved norm and linear": {"modules_to_save": ["norm", "layers.1.mlp.up_proj"]},
    "head": {"target_modules": ["lm_head", "v_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "bias of the adapter": {"lora_bias": True},
    "biases of the adapted layers": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "single tokens": {"trainable_token_indices": [5, 17, 370]},
    "single tokens of both": {"trainable_token_indices": {"embed_tokens": [5, 17], "lm_head": [3]}},
}


@pytest.mark.parametrize("changes", UNTIED.values(), ids=UNTIED.keys())
def test_whole_modules_biases_and_tokens_equal_those_that_peft_merges(
    untied: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = build_any_adapter(untied, tmp_path / "adapter", **changes)
    assert_equal(merged(untied, folder), load_any(untied, folder))


@pytest.mark.parametrize("store", [True, False], ids=["stored from the model", "modules_to_save"])
def test_a_resized_vocabulary_has_the_rows_of_the_adapter(untied: Path, tmp_path: Path, store: bool) -> None:
    changes: dict[str, Any] = {} if store else {"modules_to_save": ["embed_tokens", "lm_head"]}
    folder = build_any_adapter(untied, tmp_path / "adapter", resize=5, store_embedding=store, **changes)
    ours = merged(untied, folder)
    assert len(ours[EMBEDDING]) == len(ours[HEAD]) == len(load(untied).get_input_embeddings().weight) + 5
    assert_equal(ours, load_any(untied, folder, resize=5))


# On a base that uses one tensor twice: which of the two the training changed is what PEFT computes with.
TIED = {
    "head": ({"target_modules": ["lm_head", "v_proj"]}, True),
    "saved head": ({"modules_to_save": ["lm_head"]}, True),
    "saved embedding": ({"modules_to_save": ["embed_tokens"]}, True),
    "saved both": ({"modules_to_save": ["embed_tokens", "lm_head"]}, True),
    "saved both, kept tied": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
    "embedding": ({"target_modules": ["embed_tokens", "v_proj"]}, True),
    "embedding, kept tied": (
        {"target_modules": ["embed_tokens", "v_proj"], "ensure_weight_tying": True},
        False,
    ),
    "single tokens": ({"trainable_token_indices": [5, 17, 370]}, False),
    "different tokens": ({"trainable_token_indices": {"embed_tokens": [201], "lm_head": [3]}}, True),
}


@pytest.mark.parametrize(("changes", "parted"), TIED.values(), ids=TIED.keys())
def test_a_shared_head_answers_as_in_peft(
    base: Path, tmp_path: Path, changes: dict[str, Any], parted: bool
) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", **changes)
    ours = merged(base, folder)
    assert (HEAD in ours) == parted
    assert differs(ours, base, load_any(base, folder)) < 1e-4


@pytest.mark.parametrize(
    "changes",
    [{"trainable_token_indices": [5, 17]}, {"modules_to_save": ["embed_tokens"]}],
    ids=["one", "two"],
)
def test_a_head_that_llama_cpp_insists_on_is_what_peft_computes_with(
    base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", **changes)
    with open_merged(base, folder) as rows:
        shape = rows.shapes[EMBEDDING]
        head = TensorPlan("output.weight", (EMBEDDING,), ("lm_head",), shape)
        embedding = rows.rows(straight(EMBEDDING, shape), 0, shape[0])
        own = rows.base_rows(head, 0, shape[0])
        assert not torch.equal(embedding, own)
        assert torch.equal(rows.rows(head, 0, shape[0]), own if rows.head_parted else embedding)
        assert rows.adapted(head) != rows.head_parted


def test_a_resized_shared_vocabulary_stays_one(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", resize=5, store_embedding=True)
    ours = merged(base, folder)
    assert HEAD not in ours and len(ours[EMBEDDING]) == len(load(base).get_input_embeddings().weight) + 5
    assert differs(ours, base, load_any(base, folder, resize=5), resize=5) < 1e-4


def differs(ours: dict[str, torch.Tensor], base: Path, theirs: Any, resize: int = 0) -> float:
    """Largest difference in log-probability between a model of our tensors and PEFT's."""
    model = load(base)
    if resize:
        model.resize_token_embeddings(model.config.vocab_size + resize, mean_resizing=False)
    model.lm_head.weight = torch.nn.Parameter(ours.get(HEAD, ours[EMBEDDING]))
    model.model.embed_tokens.weight = torch.nn.Parameter(ours[EMBEDDING])
    model.load_state_dict(ours, strict=False)
    one, other = (torch.tensor(log_probabilities(m, PROMPT)) for m in (model, theirs))
    return float((one - other).abs().max())


EXPORTED = {
    "weight decomposed": {"target_modules": "all-linear", "use_dora": True},
    "saved embedding": {"modules_to_save": ["embed_tokens", "norm"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj", "q_proj"]},
    "head": {"target_modules": ["lm_head", "k_proj"]},
    "single tokens": {"trainable_token_indices": [5, 17, 201]},
}


@pytest.mark.parametrize("changes", EXPORTED.values(), ids=EXPORTED.keys())
def test_an_exported_file_answers_as_peft(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", **changes)
    assert exported_difference(base, folder, tmp_path, load_any(base, folder)) < 1e-4


def test_an_exported_resized_vocabulary_answers_as_peft(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", resize=5, store_embedding=True)
    assert exported_difference(base, folder, tmp_path, load_any(base, folder, resize=5)) < 1e-4


@pytest.mark.parametrize(
    ("family", "limit"),
    [
        ("Phi3", 1e-4),
        ("Gemma", 5e-3),
        ("Gemma3", 5e-3),
        ("Olmo2", 1e-4),
        ("Qwen3Moe", 1e-4),
        ("Mixtral", 1e-4),
    ],
)
def test_an_exported_file_of_a_family_answers_as_peft(family: str, limit: float, tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", family)
    folder = build_any_adapter(base, tmp_path / "adapter", target_modules="all-linear", use_rslora=True)
    assert exported_difference(base, folder, tmp_path, load_any(base, folder)) < limit


@pytest.mark.parametrize("parts", [["down_proj"], ["gate_up_proj"], ["down_proj", "gate_up_proj"]], ids=str)
def test_experts_that_were_trained_in_part_equal_those_that_peft_merges(
    parts: list[str], tmp_path: Path
) -> None:
    base = build_family(tmp_path / "base", "Qwen3Moe")
    names = [f"mlp.experts.{part}" for part in parts]
    folder = build_any_adapter(
        base,
        tmp_path / "adapter",
        target_parameters=names,
        target_modules=["v_proj"],
        alpha_pattern={names[0]: 5},
    )
    ours, theirs = merged(base, folder), load_any(base, folder).merge_and_unload().state_dict()
    for layer in range(3):
        experts = f"model.layers.{layer}.mlp.experts"
        for i in range(4):
            gate_up = [ours[f"{experts}.{i}.{part}_proj.weight"] for part in ("gate", "up")]
            torch.testing.assert_close(torch.cat(gate_up), theirs[f"{experts}.gate_up_proj"][i])
            torch.testing.assert_close(
                ours[f"{experts}.{i}.down_proj.weight"], theirs[f"{experts}.down_proj"][i]
            )


def test_single_experts_as_transformers_4_trained_them_answer_as_peft(tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", "Mixtral")
    folder = build_any_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    path = folder / "adapter_model.safetensors"
    tensors, shapes = load_file(path), {"w1": (96, 64), "w3": (96, 64), "w2": (64, 96)}
    for layer, expert, name in itertools.product(range(3), range(4), shapes):
        module = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, shapes[name][1]) * 0.3
        tensors[f"{module}.lora_B.weight"] = torch.randn(shapes[name][0], 4) * 0.3
    save_file(tensors, path)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "w1", "w2", "w3"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert exported_difference(base, folder, tmp_path, load_any(base, folder)) < 1e-4


def exported_difference(base: Path, folder: Path, place: Path, theirs: Any) -> float:
    exported = export_gguf(base, folder, place / "model.gguf", "f32")
    want = torch.tensor(log_probabilities(theirs, PROMPT))
    with LlamaServer(exported.path, 64) as server:
        found = server.top(PROMPT, len(want), 120)
    return max(abs(value - float(want[token])) for token, value in found.items())


def test_a_part_of_the_rows_is_that_part_of_all(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", target_modules="all-linear", use_dora=True)
    with open_merged(base, folder) as rows:
        plans = plan_tensors(read_config(base), rows.shapes, rows.adapted_modules)
        for plan in plans:
            whole = rows.rows(plan, 0, plan.rows)
            torch.testing.assert_close(rows.rows(plan, 3, 9), whole[3:9], atol=2e-6, rtol=1e-5)
            delta = rows.rows(plan, 3, 9) - rows.base_rows(plan, 3, 9)
            assert bool(delta.any()) == rows.adapted(plan), plan.name


def test_permuted_rows_are_those_of_the_base_in_another_order(base: Path, tmp_path: Path) -> None:
    with open_merged(base, build_adapter(base, tmp_path / "adapter")) as rows:
        plans = plan_tensors(read_config(base), rows.shapes, rows.adapted_modules)
        plan = next(plan for plan in plans if plan.module == "model.layers.0.self_attn.q_proj")
        whole, same = rows.rows(plan, 0, 64), straight(plan.key, plan.shape)
        assert not torch.equal(whole, rows.rows(same, 0, 64))
        torch.testing.assert_close(rows.rows(plan, 13, 39), whole[13:39])
        # Row 1 of a head of 16 is the partner of row 0: its row 8 in transformers' order.
        torch.testing.assert_close(whole[1], rows.rows(same, 8, 9)[0])


def test_a_shift_is_added_after_the_adapter(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", modules_to_save=["norm"])
    with open_merged(base, folder) as rows:
        shape = rows.shapes[NORM]
        plan = straight(NORM, shape)
        shifted = TensorPlan(NORM, plan.keys, plan.modules, shape, shift=1.0)
        assert rows.adapted(plan)
        torch.testing.assert_close(rows.rows(shifted, 2, 9), rows.rows(plan, 2, 9) + 1)
        torch.testing.assert_close(rows.base_rows(shifted, 2, 9), rows.base_rows(plan, 2, 9) + 1)


def test_stacked_experts_are_read_across_their_borders(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", target_modules=["up_proj"])
    with open_merged(base, folder) as rows:
        modules = tuple(f"model.layers.{i}.mlp.{part}_proj" for i in (0, 1) for part in ("gate", "up"))
        keys = tuple(f"{module}.weight" for module in modules)
        count, width = rows.shapes[keys[0]]
        stack = TensorPlan("stack", keys, modules, (4, count, width))
        single = torch.cat([rows.rows(straight(key, (count, width)), 0, count) for key in keys])
        assert torch.equal(rows.rows(stack, 0, 4 * count), single)
        assert torch.equal(rows.rows(stack, count - 3, 3 * count + 5), single[count - 3 : 3 * count + 5])
        assert torch.equal(rows.rows(stack, count, 2 * count), single[count : 2 * count])
        assert rows.adapted(stack)


def test_many_threads_read_what_one_reads(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", target_modules="all-linear", use_dora=True)
    with open_merged(base, folder) as rows, ThreadPoolExecutor(8) as pool:
        plans = [straight(name, shape) for name, shape in rows.shapes.items()] * 3
        found = list(pool.map(lambda plan: rows.rows(plan, 0, plan.rows), plans))
        for plan, values in zip(plans, found, strict=True):
            assert torch.equal(values, rows.rows(plan, 0, plan.rows)), plan.name


def test_shards_hold_the_same_rows_as_one_file(base: Path, tmp_path: Path) -> None:
    sharded = build_llama(tmp_path / "sharded", shard="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, many = Weights.of_model(base), Weights.of_model(sharded)
    assert one.shapes.keys() == many.shapes.keys()
    for name, shape in one.shapes.items():
        assert torch.equal(one.rows(name, 0, shape[0]), many.rows(name, 0, shape[0]))


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
