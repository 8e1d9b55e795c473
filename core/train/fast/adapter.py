"""The LoRA adapter of the fast path: its start, its weights by layer and by name, and PEFT's two files.

Neither PEFT nor transformers is imported; what is written here loads there, and the other way round.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Parameter

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.adapter_config import CONFIG, WEIGHTS
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.plan.settings import ALL_LINEAR, TrainingSettings
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    from ollama_tune.core.models.blueprint import Blueprint

_PREFIX = "base_model.model."
# PEFT draws a start in the order in which transformers registers the linear layers.
_DRAWN = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "qkv_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
)
# What an adapter_config.json must say, or leave out, for plain LoRA on whole linear layers.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}


@dataclass(frozen=True)
class Pair:
    """The LoRA of one linear layer: `a` is rank x input, `b` output x rank, both float32.

    Its output is that of the rows `start` to `stop` of the fused layer it is part of.
    """

    module: str
    a: Parameter
    b: Parameter
    start: int
    stop: int


@dataclass(frozen=True)
class Group:
    """The pairs of the linear layers that share an input and are computed as one product.

    `a` is all their A matrices one below the other (the sum of the ranks x input), float32; it shares its
    memory with theirs, so that one product with it needs no copy. It takes no part in autograd.
    """

    pairs: tuple[Pair, ...]
    a: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """What an adapter is, apart from its weights; `layers` are the only ones that have it, if not all do."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rslora: bool = False
    dropout: float = 0.0
    layers: tuple[int, ...] = ()

    @property
    def scale(self) -> float:
        """The factor of B A x: alpha / rank, with rank-stabilised LoRA alpha / sqrt(rank)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Adapter:
    """The trained weights of a model, by the fused linear layer they belong to and by PEFT's names."""

    def __init__(self, layout: Layout, groups: Mapping[str, Group]) -> None:
        self.layout = layout
        self._groups = dict(groups)

    @property
    def rank(self) -> int:
        """Width of every pair."""
        return self.layout.rank

    @property
    def scale(self) -> float:
        """The factor of B A x."""
        return self.layout.scale

    @property
    def dropout(self) -> float:
        """Share of the inputs of A that is set to zero while training."""
        return self.layout.dropout

    def group(self, name: str) -> Group | None:
        """What belongs to a fused linear layer such as `layers.0.qkv`; None where nothing is trained."""
        return self._groups.get(name)

    def pairs(self) -> Iterator[Pair]:
        """All pairs, in the order of the layers."""
        for group in self._groups.values():
            yield from group.pairs

    def named(self) -> dict[str, Parameter]:
        """All weights under their names in `adapter_model.safetensors`."""
        found: dict[str, Parameter] = {}
        for pair in self.pairs():
            found[f"{_PREFIX}{pair.module}.lora_A.weight"] = pair.a
            found[f"{_PREFIX}{pair.module}.lora_B.weight"] = pair.b
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors of an adapter file into the weights; `TuneError` unless they are exactly these."""
        weights = self.named()
        wrong = sorted(weights.keys() ^ tensors.keys())
        wrong += [name for name in weights if name in tensors and weights[name].shape != tensors[name].shape]
        if wrong:
            raise TuneError(
                f"The adapter does not fit the model and its settings: {len(wrong)} weights differ, such as "
                f"{wrong[0]}.",
                "Use the base model and the settings that it was trained with.",
            )
        for name, weight in weights.items():
            weight.copy_(tensors[name])

    @torch.no_grad()
    def write(self, folder: Path, base: str) -> None:
        """Write PEFT's two files into a folder; `base` is what the adapter says its base model is."""
        from safetensors.torch import save_file

        named = self.named()
        whole = {name: weight.detach().cpu().contiguous() for name, weight in named.items()}
        save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(self._config(base), indent=2, sort_keys=True))

    def _config(self, base: str) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": True,
            "r": self.layout.rank,
            "lora_alpha": self.layout.alpha,
            "lora_dropout": self.layout.dropout,
            "use_rslora": self.layout.rslora,
            "use_dora": False,
            "target_modules": list(self.layout.targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "modules_to_save": None,
            "rank_pattern": {},
            "alpha_pattern": {},
            "layers_to_transform": list(self.layout.layers) or None,
            "layers_pattern": "layers" if self.layout.layers else None,
        }


def new_adapter(blueprint: Blueprint, training: TrainingSettings) -> Adapter:
    """A fresh adapter on the device of the settings: the very numbers that PEFT draws from the same seed.

    A is uniform (He et al. 2015, with a = sqrt 5, so within 1 / sqrt(input)) and rounded to the compute
    dtype, as PEFT does; B is zero. Raises `TuneError` for a target that names no linear layer.
    """
    names = sorted({part.name.rpartition(".")[2] for parts in blueprint.groups.values() for part in parts})
    targets = names if training.targets == ALL_LINEAR else list(training.targets)
    frozen = training.freeze_layers
    layers = tuple(range(frozen, blueprint.layers)) if frozen else ()
    layout = Layout(training.rank, training.alpha, tuple(targets), training.rslora, training.dropout, layers)

    def chosen(module: str) -> bool:
        return _targeted(module, targets) and _layer(module) >= frozen

    adapter = _build(blueprint, layout, chosen, training.device)
    _check_targets(blueprint, targets, names)
    _start(adapter, training)
    return adapter


def _targeted(module: str, targets: Sequence[str]) -> bool:
    """PEFT's rule: the whole name of a module, or the end of it from a dot on."""
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _check_targets(blueprint: Blueprint, targets: Sequence[str], names: Sequence[str]) -> None:
    modules = [module for module, *_ in _modules(blueprint)]
    for target in targets:
        if not any(_targeted(module, [target]) for module in modules):
            raise TuneError(
                f"The model has no linear layer called {target!r}.",
                f"Choose training.targets from {', '.join(names)}, or all-linear.",
            )


def _modules(blueprint: Blueprint) -> Iterator[tuple[str, str, Any]]:
    """Every linear layer but the head: its name in the model, the fused layer it is part of, its shape."""
    for layer in range(blueprint.layers):
        for name, parts in blueprint.groups.items():
            for part in parts:
                yield f"model.layers.{layer}.{part.name}", f"layers.{layer}.{name}", part


def _build(blueprint: Blueprint, layout: Layout, chosen: Callable[[str], bool], device: str) -> Adapter:
    """An adapter of zeros on the chosen modules."""
    fused: dict[str, list[tuple[str, Any, int]]] = {}
    for module, name, part in _modules(blueprint):
        before = fused.setdefault(name, [])
        before.append((module, part, before[-1][2] + before[-1][1].rows if before else 0))
    groups = {}
    for name, members in fused.items():
        members = [member for member in members if chosen(member[0])]
        if members:
            groups[name] = _group(members, layout.rank, device)
    return Adapter(layout, groups)


def _group(members: Sequence[tuple[str, Any, int]], rank: int, device: str) -> Group:
    whole = torch.zeros(rank * len(members), members[0][1].columns, device=device)
    pairs = tuple(
        Pair(
            module,
            Parameter(a),
            Parameter(torch.zeros(part.rows, rank, device=device)),
            start,
            start + part.rows,
        )
        for (module, part, start), a in zip(members, torch.split(whole, rank), strict=True)
    )
    return Group(pairs, whole)


@torch.no_grad()
def _start(adapter: Adapter, training: TrainingSettings) -> None:
    """Draw A as PEFT does: its linear layers draw A and B when they are made, and then A is drawn again."""
    torch.manual_seed(training.seed)
    dtype = getattr(torch, training.compute_dtype)
    for pair in sorted(adapter.pairs(), key=_turn):
        a, b = torch.empty(pair.a.shape), torch.empty(pair.b.shape)
        for drawn in (a, b, a):
            torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        pair.a.copy_(a.to(dtype))


def _turn(pair: Pair) -> tuple[int, int]:
    """The place of a module among all: its layer, and where in the layer."""
    return _layer(pair.module), _DRAWN.index(pair.module.rpartition(".")[2])


def _layer(module: str) -> int:
    """The number of the layer that a module such as `model.layers.0.mlp.up_proj` is in."""
    return int(module.split(".")[2])


def read_adapter(blueprint: Blueprint, folder: Path, device: str) -> Adapter:
    """A finished adapter from PEFT's two files.

    Raises `TuneError` for one that is damaged, belongs to another model, or has more in it than pairs of A
    and B of one rank on linear layers of the blueprint (such as DoRA).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    layout = _read_layout(folder)
    try:
        tensors = load_file(folder / WEIGHTS, device="cpu")
    except (OSError, SafetensorError) as error:
        raise _unusable(folder, f"{WEIGHTS} cannot be read ({type(error).__name__})") from error
    adapter = _build(blueprint, layout, lambda m: f"{_PREFIX}{m}.lora_A.weight" in tensors, device)
    adapter.load(tensors)
    return adapter


def _read_layout(folder: Path) -> Layout:
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise _unusable(folder, f"it has no usable {CONFIG}")
    for name, values in _PLAIN.items():
        if name in config and config[name] not in values:
            raise _unusable(folder, f"it uses {name}={one_line(str(config[name]), 40)}")
    targets = config.get("target_modules")
    try:
        return Layout(
            rank=int(config["r"]),
            alpha=config["lora_alpha"],
            targets=(targets,) if isinstance(targets, str) else tuple(map(str, targets or ())),
            rslora=bool(config.get("use_rslora")),
            dropout=float(config.get("lora_dropout") or 0.0),
            layers=_layers(config.get("layers_to_transform")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unusable(folder, f"{CONFIG} lacks a usable {error}") from error


def _layers(listed: Any) -> tuple[int, ...]:
    """PEFT's `layers_to_transform`: nothing for all layers, a number, or several."""
    return tuple(map(int, [listed] if isinstance(listed, int) else listed or ()))


def _unusable(folder: Path, why: str) -> TuneError:
    return TuneError(
        f"The adapter in {folder} cannot be used here: {why}.", "Train again, or choose another run."
    )
