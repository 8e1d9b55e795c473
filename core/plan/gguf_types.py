"""The number formats of an exported file: how large it gets, what running it takes, and what is lost.

Which tensor gets which type follows llama.cpp's `llama-quant.cpp`; the losses are the figures of its
`tools/perplexity/README.md` for Llama-3-8B, the mean KL divergence in nats from the 16-bit model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ollama_tune.core.machine.generations import generation
from ollama_tune.core.machine.values import Machine, OllamaStatus
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.settings import ExportForm, GgufType, Settings

BITS = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.5625,
    "Q5_1": 6.0,
    "Q5_K": 5.5,
    "Q5_0": 5.5,
    "Q4_K": 4.5,
    "Q4_0": 4.5,
}
"""Bits a weight, the scales of its block included."""
WITHOUT_BLOCKS = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0"}
"""What stands in for a K type where a row is no multiple of 256 weights."""
K_BLOCK = 256
VOCABULARY_BYTES = 60
"""Bytes of an entry of the tokenizer in the file: text, score, kind, and its merges."""

OLLAMA_CONTEXT = 4096
"""Ollama's own context length on small boxes; an exported model gets this or more where it can."""
CACHE_BYTES = 2
"""Ollama keeps keys and values in 16 bit."""
COMPUTE_ROWS = 512
"""Tokens of a prompt that llama.cpp computes at once; it holds a 32-bit score a vocabulary entry for each."""
CUDA_CONTEXT = 400 << 20


@dataclass(frozen=True)
class TypeMix:
    """What a type makes of the tensors: the usual ones, the more precise ones, and the output layer.

    `few` says that only the first layers are more precise, as in the S mixes, not about half of them.
    """

    base: str
    rich: str
    output: str
    loss: float
    words: str
    few: bool = False


TYPES: Mapping[GgufType, TypeMix] = MappingProxyType(
    {
        "f32": TypeMix("F32", "F32", "F32", 0.0, "nothing is lost, twice 16 bit"),
        "bf16": TypeMix("BF16", "BF16", "BF16", 0.0, "nothing to speak of"),
        "f16": TypeMix("F16", "F16", "F16", 0.0, "nothing to speak of"),
        "q8_0": TypeMix("Q8_0", "Q8_0", "Q8_0", 0.0014, "hardly measurable"),
        "q6_k": TypeMix("Q6_K", "Q6_K", "Q6_K", 0.0055, "very little"),
        "q5_k_m": TypeMix("Q5_K", "Q6_K", "Q6_K", 0.0108, "little"),
        "q4_k_m": TypeMix("Q4_K", "Q6_K", "Q6_K", 0.0313, "some; the usual one from 3 B up"),
        "q4_k_s": TypeMix("Q4_K", "Q5_K", "Q6_K", 0.0431, "noticeable", few=True),
        "q4_0": TypeMix("Q4_0", "Q4_0", "Q6_K", 0.0719, "the most; for old programs"),
    }
)
"""Every type, the most precise first."""
K_TYPES = frozenset({"q6_k", "q5_k_m", "q4_k_m", "q4_k_s"})


def k_types_available() -> bool:
    """Whether a library that writes K types is installed; asked without importing it."""
    return any(importlib.util.find_spec(name) is not None for name in ("xllamacpp", "libgguf"))


@dataclass(frozen=True)
class _Part:
    """So many weights in rows of one length; `role` is plain, value, down or output."""

    weights: float
    row: int
    role: str


def _parts(spec: ModelSpec) -> list[_Part]:
    """A decoder's matrices; what is not embedding or attention counts as gated feed-forward (or experts)."""
    query, key = spec.heads * spec.head_dim, spec.key_value_heads * spec.head_dim
    hidden, layers = spec.hidden_size, spec.layers
    head = spec.vocabulary_size * hidden
    inputs = 0 if spec.tied_embeddings else head
    attention = layers * hidden * (2 * query + 2 * key)
    feed = max(spec.parameters - head - inputs - attention, 0)
    return [
        _Part(head, hidden, "output"),
        _Part(inputs + layers * hidden * (query + key), hidden, "plain"),
        _Part(layers * hidden * key, hidden, "value"),
        _Part(layers * hidden * query, query, "plain"),
        _Part(feed * 2 / 3, hidden, "plain"),
        _Part(feed / 3, spec.intermediate_size, "down"),
    ]


def _rich_share(mix: TypeMix, role: str, layers: int) -> float:
    """The share of the layers in which a tensor gets the more precise type."""
    first = layers // 8
    if role not in ("value", "down"):
        return 0.0
    if mix.few:
        return min(4 if role == "value" else first, layers) / layers
    rich = sum(
        layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2 for layer in range(layers)
    )
    return rich / layers


def _bits(kind: str, row: int) -> float:
    return BITS[WITHOUT_BLOCKS.get(kind, kind) if row % K_BLOCK else kind]


def export_bytes(spec: ModelSpec, gguf_type: GgufType) -> int:
    """Bytes of the exported file: each matrix at the bits its type gives it, and the tokenizer."""
    mix, total = TYPES[gguf_type], 0.0
    for part in _parts(spec):
        usual = _bits(mix.output if part.role == "output" else mix.base, part.row)
        share = _rich_share(mix, part.role, spec.layers)
        total += part.weights * (usual + share * (_bits(mix.rich, part.row) - usual))
    return int(total / 8) + VOCABULARY_BYTES * spec.vocabulary_size


def written_bytes(spec: ModelSpec, settings: Settings) -> int:
    """Bytes that an export leaves in the run's folder, with what is written besides the file."""
    wanted = settings.export
    if wanted.name is None:
        return 0
    return export_bytes(spec, wanted.type) + sum(form_bytes(spec, form) for form in wanted.also)


def form_bytes(spec: ModelSpec, form: ExportForm) -> int:
    """Bytes of an extra output; an adapter is small enough not to count."""
    return 2 * spec.parameters if form == "merged" else 0


def ollama_copies(server: OllamaStatus) -> int:
    """How many times Ollama holds the file on its disk while it takes it; some versions rewrite it."""
    return generation(server.version or "").copies


def serving_context(settings: Settings, spec: ModelSpec) -> int:
    """The context in tokens that the model gets in Ollama: never below the trained length."""
    return min(max(settings.training.sequence_length, OLLAMA_CONTEXT), max(spec.context_length, 1))


def cache_bytes(spec: ModelSpec, context: int) -> int:
    """Keys and values of a full context: layers x KV heads x head width x 2 x bytes x tokens."""
    return spec.layers * spec.key_value_heads * spec.head_dim * 2 * CACHE_BYTES * context


@dataclass(frozen=True)
class Room:
    """Memory in bytes that Ollama can have, and where (`GPU` or `RAM`); `free` is None where unknown."""

    free: int | None
    place: str


def ollama_room(machine: Machine) -> Room:
    """What Ollama can have here: free GPU memory, else RAM, with what its own models hold now.

    The memory of another host, where OLLAMA_HOST names one, is not known.
    """
    server, gpus = machine.ollama, machine.gpu.gpus
    if not server.local:
        return Room(None, "another host")
    if gpus:
        return Room(sum(gpu.free for gpu in gpus) + sum(model.vram for model in server.loaded), "GPU")
    held = sum(model.size - model.vram for model in server.loaded)
    return Room(machine.host.ram_available + held, "RAM")


@dataclass(frozen=True)
class TypeOffer:
    """A type for one model on one box: bytes of the file, bytes to run it, and whether that fits.

    `fits` is None where the memory is not known. `available` is False where its quantizer is missing.
    """

    name: GgufType
    bytes: int
    needed: int
    fits: bool | None
    loss: float
    words: str
    available: bool


def type_offers(spec: ModelSpec, machine: Machine, context: int) -> dict[GgufType, TypeOffer]:
    """Every type with its cost, the most precise first; `context` in tokens."""
    room, k_types = ollama_room(machine), k_types_available()
    buffers = 4 * COMPUTE_ROWS * spec.vocabulary_size + (CUDA_CONTEXT if room.place == "GPU" else 0)
    offers: dict[GgufType, TypeOffer] = {}
    for name, mix in TYPES.items():
        size = export_bytes(spec, name)
        needed = size + cache_bytes(spec, context) + buffers
        fits = None if room.free is None else needed <= room.free
        available = k_types or name not in K_TYPES
        offers[name] = TypeOffer(name, size, needed, fits, mix.loss, mix.words, available)
    return offers
