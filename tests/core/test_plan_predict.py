"""`ollama-tune predict`: what it takes, what it refuses, and formula against simulation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.plan.paths import Way
from ollama_tune.core.plan.predict import Simulator, by_formula, predict_peak, read_model_config
from ollama_tune.core.plan.request import MemoryRequest, as_request, parse_request, request_help
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.plan.shape import Shape
from ollama_tune.tui.cli import cli
from ollama_tune.tui.predict_cli import predict
from tests.bench.memory_formula import MODELS
from tests.cases import LLAMA_1B

GIB = 1 << 30
LLAMA = MODELS["Llama-3.1-8B"]


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator() as child:
        yield child


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = MODELS["Llama-3.2-1B"] | {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def call(*arguments: str) -> Any:
    return CliRunner().invoke(predict, list(arguments), standalone_mode=False, catch_exceptions=False)


# -- what is asked


def test_keys_are_those_of_run_yaml_with_and_without_their_section() -> None:
    asked = parse_request(
        {"training.rank": 8, "quantization": "nf4", "checkpointing": True, "learning_rate": 1e-4}
    )
    assert (asked.rank, asked.quantization, asked.gradient_checkpointing) == (8, "nf4", "layers")
    assert parse_request({"targets": "q_proj, v_proj"}).targets == ["q_proj", "v_proj"]
    assert set(TrainingSettings.model_fields) <= set(MemoryRequest.model_fields)


def test_the_words_of_transformers_are_understood() -> None:
    asked = parse_request(
        {"adapter_dtype": "bf16", "attention": "flash_attention_2", "optimizer": "paged_adamw_32bit"}
    )
    assert (asked.adapter_dtype, asked.attention, asked.optimizer) == ("bfloat16", "flash", "paged_adamw")
    asked = parse_request(
        {
            "per_device_train_batch_size": 4,
            "training.max_length": 1024,
            "r": 8,
            "target_modules": "q_proj v_proj",
            "compute_dtype": "torch.float16",
            "optim": "AdamW_Torch",
            "quantization": None,
        }
    )
    assert (asked.batch_size, asked.sequence_length, asked.rank) == (4, 1024, 8)
    assert asked.targets == ["q_proj", "v_proj"]
    assert (asked.compute_dtype, asked.optimizer) == ("float16", "adamw_foreach")
    assert asked.quantization == "none"
    assert parse_request({"targets": "c_attn"}).targets == ["c_attn"]
    assert parse_request({"targets": ["down_proj"]}).targets == ["down_proj"]


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("rnk", 8, "'rank'"),
        ("training.sequence_lenght", 8, "'sequence_length'"),
        ("quantization", "nf5", "quantization=nf4"),
        ("optimizer", "adam_8bit", "optimizer=adamw_8bit"),
        ("targets", "all-liner", "targets=all-linear"),
        ("rank", 0, "--help"),
        ("zzz", 0, "--help"),
    ],
)
def test_a_wrong_key_or_value_names_the_nearest_right_one(key: str, value: Any, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request({key: value})
    assert hint in caught.value.fix
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "values",
    [
        {"path": "auto"},
        {"path": "fast", "method": "full"},
        {"path": "fast", "dora": True},
        {"path": "fast", "padded": True},
        {"method": "full", "quantization": "nf4"},
        {"device": "cpu"},
    ],
)
def test_what_cannot_be_predicted_is_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request(values)
    assert next(iter(values)).split("_")[0] in caught.value.what.lower()


def test_every_key_that_decides_memory_is_explained() -> None:
    rows = {name: text for name, _, text in request_help()}
    assert {"sequence_length", "adapter_dtype", "attention", "optimizer", "loss", "method", "path"} <= set(
        rows
    )
    assert "learning_rate" not in rows
    assert all(rows.values())


def test_a_run_is_predicted_as_the_worker_trains() -> None:
    training = TrainingSettings(batch_size=4, sequence_length=512, compute_dtype="bfloat16")
    asked = as_request(training, Way("general", "", True), 300)
    assert (asked.sequence_length, asked.padded, asked.trained_dtype, asked.loss) == (
        300,
        True,
        "float32",
        "chunked",
    )


# -- the model


def test_a_config_alone_gives_the_shape_and_all_parameters() -> None:
    shape = Shape.of_config(MODELS["Llama-3.2-1B"])
    assert shape.parameters == LLAMA_1B.parameters == 1_235_814_400
    assert Shape.of_config(LLAMA).parameters == 8_030_261_248
    assert Shape.of_config(MODELS["Qwen3-4B"]).parameters == 4_022_468_096
    assert Shape.of_config(MODELS["Qwen2.5-7B"]).parameters == 7_615_616_512
    assert Shape.of_config(MODELS["Gemma-2-9B"]).parameters == 9_241_705_984
    assert Shape.of_config(MODELS["Phi-4-mini"]).parameters == 3_836_021_760
    assert Shape.of_config(MODELS["Gemma-7B"]).parameters == 8_537_680_896
    assert Shape.of_config(MODELS["OLMo-2-7B"]).parameters == 7_298_617_344
    assert Shape.of_config(MODELS["Mixtral-8x7B"]).parameters == 46_702_792_704
    assert Shape.of_config(MODELS["Qwen3-30B-A3B"]).parameters == 30_532_122_624


def test_every_family_that_can_be_exported_is_covered_by_the_formula() -> None:
    from ollama_tune.core.models.families import ARCHITECTURES

    known = {shape.model_type for shape in map(Shape.of_config, MODELS.values()) if shape.known}
    assert known == {family.model_type for family in ARCHITECTURES.values()}


def test_of_a_mixture_the_experts_are_neither_quantized_nor_small() -> None:
    """Their 16-bit weights, an adapter on each, and in a layer their weights made anew with it."""
    config = MODELS["Mixtral-8x7B"]
    parts = by_formula(config, MemoryRequest(quantization="nf4", gradient_checkpointing="layers")).parts
    experts = 32 * 8 * 3 * 4096 * 14336
    assert parts["weights"] > 2 * experts
    assert parts["adapter"] > 4 * 16 * 32 * 8 * (3 * 4096 + 5 * 14336)
    assert parts["activations"] > 4 * 2 * experts / 32 / 3
    few = by_formula(config, MemoryRequest(quantization="nf4", targets=["q_proj", "v_proj"])).parts
    assert few["adapter"] == 4 * 16 * 32 * (2 * 4096 + 4096 + 1024)


def test_the_part_of_a_model_that_writes_text_counts(tmp_path: Path) -> None:
    tree = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": MODELS["Gemma-3-4B"]}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert read_model_config(tmp_path) == MODELS["Gemma-3-4B"]


def test_what_decides_memory_is_enough_of_a_config(tmp_path: Path) -> None:
    """A checkpoint that is quantized already cannot be tuned, but others were measured on such ones."""
    tree = LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(TuneError, match="quantized already"):
        read_model_config(tmp_path)
    assert by_formula(read_model_config(tmp_path, any_form=True), MemoryRequest()).allocated_bytes > 0
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TuneError, match="names no model_type"):
        read_model_config(tmp_path, any_form=True)


def test_a_folder_without_a_usable_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match=r"no config\.json"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    with pytest.raises(TuneError, match=r"hidden_size|num_attention_heads"):
        by_formula(read_model_config(tmp_path), MemoryRequest())


# -- both methods


LAID: dict[str, Any] = {"apart": True, "batch_size": 4, "sequence_length": 512, "tokens": 1600}
"""Rows that lie end to end."""


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (
            "Llama-3.1-8B",
            {"quantization": "nf4", "gradient_checkpointing": "layers", "sequence_length": 8192},
        ),
        ("Llama-3.2-1B", {"dropout": 0.1, "gradient_checkpointing": "layers", "sequence_length": 4096}),
        ("Mistral-7B", {"quantization": "nf4", "adapter_dtype": "bfloat16", "sequence_length": 2048}),
        ("Qwen3-4B", {"gradient_checkpointing": "layers", "rank": 128, "padded": True, "batch_size": 4}),
        ("Qwen2.5-7B", {"quantization": "nf4", "loss": "full", "gradient_checkpointing": "layers"}),
        ("Phi-4-mini", {"targets": ["qkv_proj"], "sequence_length": 2048}),
        ("Gemma-2-9B", {"quantization": "nf4", "gradient_checkpointing": "layers", "sequence_length": 2048}),
        ("SmolLM3-3B", {"optimizer": "adamw_8bit", "gradient_accumulation_steps": 4, "batch_size": 2}),
        ("Llama-3.2-3B", {"method": "full", "gradient_checkpointing": "layers", "sequence_length": 1024}),
        ("Llama-3.2-1B", LAID | {"gradient_checkpointing": "mlp"}),
        ("Llama-3.2-1B", {"dora": True, "gradient_checkpointing": "layers", "sequence_length": 2048}),
        ("Llama-3.2-1B", {"dora": True, "dropout": 0.1, "sequence_length": 512}),
        ("Qwen3-4B", LAID | {"dora": True, "adapter_dtype": "bfloat16"}),
        ("Llama-3.1-8B", LAID | {"path": "fast", "apart": False}),
        ("Qwen3-4B", LAID | {"path": "fast", "gradient_checkpointing": "mlp", "quantization": "nf4"}),
        ("Gemma-3-4B", LAID | {"path": "fast", "gradient_checkpointing": "layers", "rank": 64}),
        ("Mistral-7B", LAID | {"path": "fast", "gradient_checkpointing": "offload", "quantization": "nf4"}),
        ("Phi-4-mini", LAID | {"path": "fast", "attention": "eager", "dropout": 0.1}),
    ],
)
def test_the_formula_agrees_with_the_simulation(
    model: str, values: dict[str, Any], simulator: Simulator
) -> None:
    asked = parse_request(values)
    simulated = simulator.predict(MODELS[model], asked)
    formula = by_formula(MODELS[model], asked)
    assert simulated.method == "simulation"
    assert not simulated.notes
    assert 0.99 <= formula.allocated_bytes / simulated.allocated_bytes <= 1.04
    for found in (simulated, formula):
        assert sum(found.parts.values()) == found.nvml_bytes > found.reserved_bytes > found.allocated_bytes
    assert formula.parts["weights"] == pytest.approx(simulated.parts["weights"], rel=0.001)


def test_a_model_that_cannot_be_simulated_falls_back_with_the_reason(simulator: Simulator) -> None:
    strange = LLAMA | {"model_type": "llama_of_tomorrow"}
    found = predict_peak(strange, MemoryRequest(), simulator=simulator)
    assert found.method == "formula"
    assert any("cannot be simulated" in note for note in found.notes)
    assert any("llama_of_tomorrow" in note for note in found.notes)
    assert found.to_json()["notes"] == list(found.notes)


def test_wrong_targets_are_refused_by_both(simulator: Simulator) -> None:
    asked = MemoryRequest(targets=["q_porj"])
    with pytest.raises(UsageError, match="q_porj"):
        predict_peak(LLAMA, asked, simulator=simulator)
    with pytest.raises(UsageError, match="q_proj"):
        by_formula(LLAMA, asked)


def test_a_child_that_takes_too_long_is_ended_and_the_formula_answers() -> None:
    with Simulator(timeout=0.05) as hasty:
        found = predict_peak(LLAMA, MemoryRequest(), simulator=hasty)
    assert found.method == "formula"
    assert ["took too long" in note for note in found.notes] == [True]


# -- the command


def test_the_command_prints_json_by_simulation(folder: Path) -> None:
    values = ["--set", "quantization=nf4", "--set", "training.rank=8", "--set", "sequence_length=512"]
    found = json.loads(call("--model", str(folder), *values, "--json").output)
    assert list(found) == ["allocated_bytes", "reserved_bytes", "nvml_bytes", "parts", "method"]
    assert found["method"] == "simulation"
    assert 1.2 * GIB < found["allocated_bytes"] < 4 * GIB


def test_the_command_prints_words_by_formula(folder: Path) -> None:
    output = call("--model", str(folder), "--method", "formula").output
    assert "by formula" in output
    assert "weights" in output
    assert "GiB" in output


def test_the_command_takes_the_models_by_name_that_a_plan_takes() -> None:
    assert "by formula" in call("--model", "bundled", "--method", "formula").output


def test_the_command_refuses_wrong_keys_and_folders(folder: Path) -> None:
    with pytest.raises(UsageError):
        call("--model", str(folder), "--set", "rnk=8")
    with pytest.raises(UsageError, match="'='"):
        call("--model", str(folder), "--set", "rank")
    with pytest.raises(TuneError, match="no model folder"):
        call("--model", str(folder / "absent"))
    (folder / "config.json").unlink()
    with pytest.raises(TuneError, match=r"no config\.json"):
        call("--model", str(folder))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "rnk=8"), "rnk"),
        (("--set", "rank"), "'='"),
        (("--set", "path=fast", "--set", "method=full"), "path fast"),
        (("--set", "method=full", "--set", "quantization=nf4"), "method full"),
        (("--set", "batch_size=0"), "batch_size"),
        (("--set", "targets=q_porj", "--method", "formula"), "q_porj"),
        (("--model", "absent"), "no model folder"),
    ],
)
def test_every_error_is_one_object_where_that_was_asked_for(
    folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = CliRunner().invoke(cli, ["predict", "--model", str(folder), *arguments, "--json"])
    told = json.loads(done.stdout)
    assert set(told) == {"outcome", "code", "what", "fix"} and told["outcome"] == "error"
    assert words in told["what"].lower() and told["fix"]
    assert done.exit_code in (1, 2)


def test_the_help_has_an_example_and_lists_the_keys() -> None:
    assert "--set quantization=nf4" in call("--help").output
    assert "adapter_dtype (by method)" in call("--keys").output
