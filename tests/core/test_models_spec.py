from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.locate import is_hub_id, list_models, resolve
from ollama_tune.core.models.spec import check_config, read_spec
from ollama_tune.core.models.weights import HEADERS, read_tensors
from tests.tiny import build_model

COMMIT = "f" * 40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("tiny"), tied=False)


@pytest.fixture
def model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change, and empty caches."""
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny, tmp_path / "my-model"))


def change(folder: Path, **values: Any) -> None:
    """Set or (with None) remove keys of config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_the_spec_is_what_transformers_loads(model: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model)
    spec = read_spec(str(model))
    assert spec.parameters == loaded.num_parameters()
    assert spec.weight_bytes == 2 * spec.parameters
    assert (spec.architecture, spec.model_type, spec.weight_dtype) == ("LlamaForCausalLM", "llama", "BF16")
    config = loaded.config
    assert (spec.hidden_size, spec.intermediate_size) == (config.hidden_size, config.intermediate_size)
    assert (spec.layers, spec.heads) == (config.num_hidden_layers, config.num_attention_heads)
    assert (spec.key_value_heads, spec.head_dim) == (config.num_key_value_heads, config.head_dim)
    assert (spec.vocabulary_size, spec.context_length) == (config.vocab_size, 512)
    assert (spec.tied_embeddings, spec.name, spec.export_reason, spec.licence) == (False, "my-model", "", "")
    assert spec.chat_template is not None
    assert "<|im_start|>" in spec.chat_template


def test_the_bundled_model_is_found_and_described() -> None:
    spec = read_spec("bundled")
    assert (spec.source, spec.export_reason) == ("bundled", "")
    assert spec.folder == resolve("bundled")
    assert list_models()[0].source == "bundled"


def test_values_that_configs_leave_out(model: Path) -> None:
    change(model, head_dim=None, num_key_value_heads=None, tie_word_embeddings=None)
    tensors = read_tensors(model)
    assert "lm_head.weight" in tensors
    with pytest.raises(TuneError, match=r"do not fit the config: model\.layers\.0\.self_attn\.k_proj"):
        read_spec(str(model))
    change(model, num_key_value_heads=2)
    spec = read_spec(str(model))
    assert (spec.head_dim, spec.tied_embeddings) == (16, False)


def test_a_base_model_has_no_template_and_the_readme_names_the_licence(model: Path) -> None:
    (model / "tokenizer_config.json").write_text("{}")
    (model / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0 # yes\n---\n# license: mit\n")
    spec = read_spec(str(model))
    assert (spec.chat_template, spec.licence) == (None, "apache-2.0")
    (model / "README.md").write_text('---\nlicense: other\nlicense_name: "llama3"\n---\n')
    assert read_spec(str(model)).licence == "llama3"
    (model / "README.md").write_bytes(b"\xff\xfe\x00")
    assert read_spec(str(model)).licence == ""


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized already \(gptq\)"),
        ({"architectures": ["BertModel"]}, "no language model .* BertModel"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "no language model"),
        ({"architectures": []}, "not given"),
        (
            {"model_type": "wizard", "auto_map": {"AutoModelForCausalLM": "m.W"}},
            "brings program code of its own",
        ),
        ({"model_type": "wizard"}, "is not known here"),
        ({"model_type": "../../etc"}, "is not known here"),
        ({"vocab_size": 999}, "do not fit the config: model.embed_tokens.weight, lm_head.weight"),
        ({"hidden_size": 32, "head_dim": 16}, "do not fit the config"),
        ({"num_hidden_layers": 5}, "2 layers instead of 5"),
        ({"num_hidden_layers": 0}, "no usable value for num_hidden_layers"),
        ({"hidden_size": "64"}, "no usable value for hidden_size"),
        ({"vocab_size": True}, "no usable value for vocab_size"),
        ({"num_attention_heads": 3, "head_dim": None}, "no usable value for num_attention_heads"),
    ],
)
def test_what_cannot_be_trained_is_refused(model: Path, values: dict[str, Any], said: str) -> None:
    path = model / "config.json"
    path.write_text(
        json.dumps({k: v for k, v in (json.loads(path.read_text()) | values).items() if v is not None})
    )
    with pytest.raises(TuneError, match=said) as caught:
        read_spec(str(model))
    assert caught.value.fix.endswith(".")


def test_an_output_layer_that_is_neither_stored_nor_tied_is_missed(model: Path) -> None:
    headers = {n: {"dtype": t.dtype, "shape": t.shape} for n, t in read_tensors(model).items()}
    del headers["lm_head.weight"]
    (model / HEADERS).write_text(json.dumps(headers))
    (model / "model.safetensors").unlink()
    with pytest.raises(TuneError, match=r"lm_head\.weight is missing"):
        read_spec(str(model))
    change(model, tie_word_embeddings=True)
    assert read_spec(str(model)).tied_embeddings


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen3", "gemma3_text", "mistral", "phi3", "gpt_neox", "smollm3"]
)
def test_model_types_that_transformers_knows(model_type: str) -> None:
    config = {"architectures": ["XForCausalLM"], "model_type": model_type, "auto_map": {"a": "b"}}
    assert check_config(config) == "XForCausalLM"


def test_a_model_that_can_be_trained_but_not_exported_says_why(model: Path) -> None:
    change(model, architectures=["BloomForCausalLM"], model_type="bloom")
    assert "BloomForCausalLM can be trained, not exported" in read_spec(str(model)).export_reason
    change(model, architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="gelu")
    assert "hidden_act=gelu" in read_spec(str(model)).export_reason


def test_the_reason_is_known_before_the_weights_are_here(model: Path) -> None:
    headers = {n: {"dtype": t.dtype, "shape": t.shape} for n, t in read_tensors(model).items()}
    (model / HEADERS).write_text(json.dumps(headers))
    (model / "model.safetensors").unlink()
    assert read_spec(str(model)).export_reason == ""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["type"] = "WordPiece"
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "WordPiece" in read_spec(str(model)).export_reason


@pytest.mark.parametrize(
    ("remove", "add", "said"),
    [
        ("config.json", None, "no config.json"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("model.safetensors", None, "There are no weights in"),
        ("model.safetensors", "pytorch_model.bin", "stored as pickle, which can run programs"),
        ("model.safetensors", "model.Q4_K_M.gguf", "stored as GGUF"),
    ],
)
def test_missing_files(model: Path, remove: str, add: str | None, said: str) -> None:
    (model / remove).unlink()
    if add:
        (model / add).write_bytes(b"x")
    with pytest.raises(TuneError, match=said):
        read_spec(str(model))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-10],
        lambda data: data + b"x",
        lambda data: data[:5],
        lambda data: b"",
        lambda data: struct.pack("<Q", 2**60) + data[8:],
        lambda data: struct.pack("<Q", 10) + data[8:],
        lambda data: struct.pack("<Q", 2) + b"[]",
        lambda data: struct.pack("<Q", 8) + b'{"a": 1}',
        lambda data: struct.pack("<Q", 32) + b'{"a":{"dtype":"F16","shape":[-1]}}'[:32],
    ],
)
def test_damaged_weights(model: Path, damage: Any) -> None:
    path = model / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TuneError, match=r"damaged or not complete|do not fit"):
        read_spec(str(model))


def test_weights_without_any_tensor(model: Path) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(TuneError, match="there are none"):
        read_spec(str(model))


def test_a_shard_that_is_missing_is_named(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TuneError, match=r"1 of 2 weight files are missing .*model-00002-of-00002"):
        read_spec(str(model))
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "/etc/passwd"}}')
    with pytest.raises(TuneError, match=r"index .* damaged"):
        read_spec(str(model))


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff", '{"architectures": "LlamaForCausalLM"}'])
def test_a_damaged_config(model: Path, content: str) -> None:
    (model / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(TuneError, match=r"damaged|cannot be read|not given"):
        read_spec(str(model))


def test_places_that_are_no_model(model: Path, tmp_path: Path) -> None:
    for source, said in (
        ("", "no model folder"),
        (str(tmp_path / "none"), "There is no model folder"),
        (str(model / "config.json"), "is a file"),
        ("org/none", "not downloaded"),
        (str(tmp_path), "no config.json"),
        ("a\0b", "no model folder"),
    ):
        with pytest.raises(TuneError, match=said):
            read_spec(source)


def test_hub_ids_are_told_from_folders(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    (model.parent / "org" / "name").mkdir(parents=True)
    for source in ("Qwen/Qwen3-0.6B", "a/b", "org2/name"):
        assert is_hub_id(source), source
    for source in (
        "bundled",
        "org/name",
        "./a/b",
        "~/a",
        "/a/b",
        "a/b/c",
        "a--b/c",
        "a/..",
        "a/b.git",
        "a",
        "a/b " * 9,
    ):
        assert not is_hub_id(source), source
    assert resolve("my-model") == model


def test_the_cache_of_hugging_face_is_listed_and_used(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "models--org--name-of--it"
    folder = repository / "snapshots" / COMMIT
    shutil.copytree(model, folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    bert = tmp_path / "cache" / "models--org--bert" / "snapshots" / COMMIT
    bert.mkdir(parents=True)
    (bert / "config.json").write_text('{"architectures": ["BertModel"]}')
    broken = tmp_path / "cache" / "models--org--broken" / "snapshots" / COMMIT
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    partial = tmp_path / "cache" / "models--org--partial" / "snapshots" / COMMIT
    partial.mkdir(parents=True)
    shutil.copy(model / "config.json", partial)
    listed = {choice.source: choice for choice in list_models() if choice.kind == "cache"}
    assert set(listed) == {"org/name-of/it".replace("/it", "--it"), "org/partial"}
    assert "not completely downloaded" in listed["org/partial"].note
    assert listed["org/partial"].size is None
    shutil.move(repository, tmp_path / "cache" / "models--org--tiny")
    assert read_spec("org/tiny").folder == tmp_path / "cache" / "models--org--tiny" / "snapshots" / COMMIT
    with pytest.raises(TuneError, match=r"no tokenizer\.json"):
        read_spec("org/partial")


def test_a_complete_copy_comes_before_a_described_one(model: Path, tmp_path: Path) -> None:
    described = tmp_path / "home" / "data" / "models" / "models--org--tiny" / "snapshots" / COMMIT
    shutil.copytree(model, described, ignore=shutil.ignore_patterns("*.safetensors"))
    (described / HEADERS).write_text("{}")
    assert resolve("org/tiny") == described
    unfinished = tmp_path / "cache" / "models--org--tiny" / "snapshots" / COMMIT
    shutil.copytree(model, unfinished, ignore=shutil.ignore_patterns("*.safetensors"))
    assert resolve("org/tiny") == described
    shutil.copy(model / "model.safetensors", unfinished)
    assert resolve("org/tiny") == unfinished


def test_stored_headers_stand_in_for_the_weights(model: Path) -> None:
    expected = read_spec(str(model))
    headers = {n: {"dtype": t.dtype, "shape": t.shape} for n, t in read_tensors(model).items()}
    (model / HEADERS).write_text(json.dumps(headers))
    (model / "model.safetensors").unlink()
    assert read_spec(str(model)) == expected
    (model / HEADERS).write_text('{"a": {"shape": "x"}}')
    with pytest.raises(TuneError, match="damaged"):
        read_spec(str(model))


def test_describing_a_model_imports_no_heavy_library(model: Path) -> None:
    code = (
        "import sys\nfrom ollama_tune.core.models.spec import read_spec\n"
        "from ollama_tune.core.models.locate import list_models\n"
        f"read_spec({str(model)!r}); list_models()\n"
        "print({'torch', 'transformers', 'safetensors', 'huggingface_hub', 'tokenizers'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
