"""Describes a base model from its files and refuses, with the reason, what cannot be trained."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.locate import BUNDLED, is_hub_id, resolve
from ollama_tune.core.models.obstacle import export_obstacle
from ollama_tune.core.models.tokenizer_files import chat_template, read_json, read_text
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.models.weights import Tensor, read_tensors

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
_LICENCE = re.compile(r"^(license(?:_name)?):[ \t]*([^\n#]+)", re.MULTILINE)
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_ANOTHER = "Choose another model."


def read_spec(source: str, revision: str | None = None) -> ModelSpec:
    """The shape, size and texts of a model on this machine.

    Raises `TuneError` for a folder that is not there, not complete, damaged, or holds what cannot be
    trained here: pickled or quantized weights, code of its own, anything but a causal language model.
    """
    folder = resolve(source, revision)
    config = _config(folder)
    architecture = check_config(config)
    if not (folder / "tokenizer.json").is_file():
        raise TuneError(
            f"The model folder {folder} has no tokenizer.json.", "Choose a model that ships one, or add it."
        )
    tensors = read_tensors(folder)
    shape = _shape(config)
    tied = _tied(config, tensors)
    _check_sizes(shape, tensors, tied, folder)
    dtypes: Counter[str] = Counter()
    for tensor in tensors.values():
        dtypes[tensor.dtype] += tensor.bytes
    return ModelSpec(
        source=source,
        folder=folder,
        name=_name(source, folder),
        architecture=architecture,
        model_type=str(config["model_type"]),
        parameters=sum(tensor.count for tensor in tensors.values()),
        weight_bytes=sum(dtypes.values()),
        weight_dtype=dtypes.most_common(1)[0][0] if dtypes else "",
        tied_embeddings=tied,
        chat_template=chat_template(folder),
        licence=licence(folder),
        export_reason=export_obstacle(folder),
        **shape,
    )


def _config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if config is None:
        raise TuneError(
            f"{folder} is not a model folder: it has no config.json.",
            "Choose the folder that holds config.json, tokenizer.json and the weights.",
        )
    return config


def check_config(config: Mapping[str, Any]) -> str:
    """The architecture of a `config.json` that can be trained; `TuneError` with the reason otherwise."""
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    model_type = str(config.get("model_type", ""))
    if config.get("quantization_config"):
        kind = config["quantization_config"]
        method = kind.get("quant_method") if isinstance(kind, dict) else None
        raise TuneError(
            f"This checkpoint is quantized already ({method or 'method unknown'}), so it cannot be tuned.",
            "Choose the original 16-bit model; it is quantized while training when memory is short.",
        )
    if not architecture.endswith("ForCausalLM"):
        raise TuneError(
            f"This is no language model that writes text: its architecture is {architecture or 'not given'}.",
            "Choose a model whose architecture ends with ForCausalLM.",
        )
    if not _known_type(model_type):
        own = "brings program code of its own" if config.get("auto_map") else "is not known here"
        raise TuneError(
            f"The model type {model_type or '(none)'} {own}, and code from a model is never run.",
            "Choose a model that the installed transformers library knows.",
        )
    return architecture


def _known_type(model_type: str) -> bool:
    """True when the installed transformers has a package for it; asked without importing it."""
    if not re.fullmatch(r"[a-z0-9_-]+", model_type):
        return False
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        return False
    models = Path(found.origin).parent / "models"
    name = model_type.replace("-", "_")
    return any((models / part / "__init__.py").is_file() for part in (name, name.removesuffix("_text")))


def _shape(config: Mapping[str, Any]) -> dict[str, int]:
    hidden = _number(config, "hidden_size", "n_embd", "d_model")
    heads = _number(config, "num_attention_heads", "n_head")
    if hidden % heads and not config.get("head_dim"):
        raise _bad_config("num_attention_heads")
    return {
        "hidden_size": hidden,
        "intermediate_size": _number(config, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden),
        "layers": _number(config, "num_hidden_layers", "n_layer"),
        "heads": heads,
        "key_value_heads": _number(config, "num_key_value_heads", default=heads),
        "head_dim": _number(config, "head_dim", default=hidden // heads),
        "vocabulary_size": _number(config, "vocab_size"),
        "context_length": _number(config, "max_position_embeddings", "n_positions", default=2048),
    }


def _number(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of the names that is set; configs write an unset value as null."""
    for name in names:
        value = config.get(name)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise _bad_config(name)
            return value
    if default is None:
        raise _bad_config(names[0])
    return default


def _bad_config(name: str) -> TuneError:
    return TuneError(f"The model's config.json gives no usable value for {name}.", _ANOTHER)


def _tied(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """What is stored decides: an output layer of its own, or the input embedding used twice."""
    stored = config.get("tie_word_embeddings")
    return stored if isinstance(stored, bool) else "lm_head.weight" not in tensors


def _check_sizes(shape: Mapping[str, int], tensors: Mapping[str, Tensor], tied: bool, folder: Path) -> None:
    """The weights must have the sizes that the config claims (checked for names most families share)."""
    query, key = shape["heads"] * shape["head_dim"], shape["key_value_heads"] * shape["head_dim"]
    expected = {
        "model.embed_tokens.weight": (shape["vocabulary_size"], shape["hidden_size"]),
        "lm_head.weight": (shape["vocabulary_size"], shape["hidden_size"]),
        "model.layers.0.self_attn.q_proj.weight": (query, shape["hidden_size"]),
        "model.layers.0.self_attn.k_proj.weight": (key, shape["hidden_size"]),
        "model.layers.0.mlp.down_proj.weight": (shape["hidden_size"], shape["intermediate_size"]),
    }
    wrong = [name for name, size in expected.items() if name in tensors and tensors[name].shape != size]
    if not tied and "model.embed_tokens.weight" in tensors and "lm_head.weight" not in tensors:
        wrong.append("lm_head.weight is missing")
    layers = {int(found[1]) for name in tensors if (found := _LAYER.search(name))}
    if layers and layers != set(range(shape["layers"])):
        wrong.append(f"{len(layers)} layers instead of {shape['layers']}")
    if wrong or not tensors:
        raise TuneError(
            f"The weights in {folder} do not fit the config: {', '.join(wrong[:2]) or 'there are none'}.",
            "Download the model again; config and weights must come from the same place.",
        )


def licence(folder: Path) -> str:
    """The licence in the front matter of README.md, or an empty text."""
    try:
        matter = _FRONT_MATTER.search(read_text(folder / "README.md") or "")
    except TuneError:
        return ""
    found = _LICENCE.findall(matter[1] if matter else "")
    fields: dict[str, str] = {key: value.strip().strip("'\"") for key, value in found}
    name = fields.get("license", "")
    return fields.get("license_name", name) if name == "other" else name


def _name(source: str, folder: Path) -> str:
    if source == BUNDLED:
        return "demo-model"
    return source.split("/")[-1] if is_hub_id(source) else folder.name
