"""The shipped list of base models, held against transformers' own classes and our export."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.models.about import about
from ollama_tune.core.models.architectures import read_config
from ollama_tune.core.models.catalogue import CatalogueModel, catalogue, find_listed, listed_choices, spec_of
from ollama_tune.core.models.families import ARCHITECTURES
from ollama_tune.core.models.locate import is_hub_id
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.models.weights import HEADERS
from tests.tiny import build_tokenizer

MODELS = {model.id: model for model in catalogue()}
WANTED = {
    "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM",
    "MistralForCausalLM", "Phi3ForCausalLM", "SmolLM3ForCausalLM", "GraniteForCausalLM", "Olmo2ForCausalLM",
}  # fmt: skip


def config_of(model: CatalogueModel, layers: int | None = None) -> Any:
    """transformers' configuration of a listed model."""
    import transformers

    kind = getattr(transformers, model.architecture).config_class
    return kind(
        architectures=[model.architecture],
        num_hidden_layers=layers or model.layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_attention_heads=model.heads,
        num_key_value_heads=model.key_value_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocabulary_size,
        max_position_embeddings=model.context_length,
        tie_word_embeddings=model.tied_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def tensors_of(model: CatalogueModel, layers: int | None = None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights that transformers makes, shared ones once; no memory is taken."""
    import torch
    import transformers

    with torch.device("meta"):
        made = getattr(transformers, model.architecture)(config_of(model, layers))
    for name, tensor in made.named_parameters():
        yield name, tuple(tensor.shape)


def count(model: CatalogueModel, layers: int) -> int:
    return sum(math.prod(shape) for _, shape in tensors_of(model, layers))


def test_every_size_and_family_is_there_once() -> None:
    sizes = [model.parameters for model in catalogue()]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.2e9
    assert sizes[-1] > 69e9
    assert 15 <= len(MODELS) == len(catalogue()) <= 30
    assert {model.architecture for model in catalogue()} == WANTED
    assert all(is_hub_id(model.id) for model in catalogue())


def test_what_is_offered_without_a_question_is_free_and_no_more_than_thrice_the_next_smaller() -> None:
    offered = [model for model in catalogue() if model.offered]
    assert all(model.gated is False and model.licence == "apache-2.0" for model in offered)
    steps = [b.parameters / a.parameters for a, b in itertools.pairwise(offered)]
    assert len(offered) >= 6
    assert all(1.2 < step < 3 for step in steps)


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_are_what_transformers_builds(name: str) -> None:
    model = MODELS[name]
    one, two = count(model, 1), count(model, 2)
    assert model.parameters == one + (two - one) * (model.layers - 1)


@pytest.mark.parametrize("name", MODELS)
def test_the_export_takes_the_configuration(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    config_of(model).save_pretrained(tmp_path)
    read = read_config(tmp_path)
    assert (read.layers, read.hidden, read.heads, read.key_value_heads) == (
        model.layers,
        model.hidden_size,
        model.heads,
        model.key_value_heads,
    )
    assert (read.head_dim, read.feed_forward, read.context, read.tied) == (
        model.head_dim,
        model.intermediate_size,
        model.context_length,
        model.tied_embeddings,
    )


@pytest.mark.parametrize(
    "name",
    ["HuggingFaceTB/SmolLM2-135M-Instruct", "allenai/OLMo-2-0425-1B-Instruct", "google/gemma-3-270m-it"],
)
def test_the_spec_is_the_one_that_the_files_give(name: str, tmp_path: Path) -> None:
    listed = spec_of(MODELS[name])
    build_tokenizer(tmp_path)
    config_of(MODELS[name]).save_pretrained(tmp_path)
    headers = {key: {"dtype": "BF16", "shape": shape} for key, shape in tensors_of(MODELS[name])}
    (tmp_path / HEADERS).write_text(json.dumps(headers))
    read = read_spec(str(tmp_path))
    texts = {"source": "", "name": "", "folder": tmp_path, "chat_template": None, "licence": ""}
    assert replace(read, **texts) == replace(listed, **texts)  # type: ignore[arg-type]


def test_a_listed_model_is_found_by_its_hub_id_in_any_case() -> None:
    found = find_listed("qwen/qwen3-0.6b")
    assert found is not None
    assert (found.id, found.name) == ("Qwen/Qwen3-0.6B", "Qwen3-0.6B")
    assert find_listed("org/other") is None
    assert spec_of(found).model_type == ARCHITECTURES["Qwen3ForCausalLM"].model_type


def test_the_list_for_the_screen_leaves_out_what_is_here_and_names_what_is_gated() -> None:
    choices = {choice.source: choice for choice in listed_choices({"Qwen/Qwen3-0.6B"})}
    assert set(choices) == set(MODELS) - {"Qwen/Qwen3-0.6B"}
    free, gated = choices["Qwen/Qwen3-8B"], choices["meta-llama/Llama-3.1-8B-Instruct"]
    assert (free.kind, free.note) == ("catalogue", "not downloaded, licence apache-2.0")
    assert gated.note.endswith("licence llama3.1; its licence has to be accepted on the hub")
    assert free.size == 2 * MODELS["Qwen/Qwen3-8B"].parameters


def test_of_a_model_that_is_not_here_the_whole_is_to_download() -> None:
    spec = spec_of(MODELS["Qwen/Qwen3-8B"])
    assert not spec.folder.exists()
    found = about(spec)
    assert (found.to_download, found.offer, found.gated) == (2 * spec.parameters, None, "")


def test_the_list_loads_no_heavy_library() -> None:
    code = (
        "import sys\nfrom ollama_tune.core.models.catalogue import catalogue, spec_of\n"
        "[spec_of(model) for model in catalogue()]\n"
        "print({'torch', 'transformers', 'huggingface_hub', 'pydantic'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
