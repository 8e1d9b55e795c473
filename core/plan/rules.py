"""The rules behind the recommended values: each returns a value with the numbers that chose it.

Each choice names its source. Certain are figures of this box, data or model and the memory formula. "LoRA
Without Regret" (2025), the Tinker cookbook's LoRA primer and QLoRA (arXiv 2305.14314) are published
experiments. A convention is what most people do where no experiment decides; another value is as defensible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from ollama_tune.core.data.values import LENGTH_STEP, Lengths
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.families import ARCHITECTURES
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.gguf_types import K_TYPES, Room, TypeOffer, ollama_room, type_offers
from ollama_tune.core.plan.methods import adapter_parameters
from ollama_tune.core.plan.names import suggest_name
from ollama_tune.core.plan.padding import grouped_padding, packed_rows, random_padding
from ollama_tune.core.plan.paths import SHARED, fast_obstacle, general_pads, way_of
from ollama_tune.core.plan.settings import GgufType, TrainingSettings
from ollama_tune.core.plan.values import Choice
from ollama_tune.core.rounding import round_up
from ollama_tune.core.text import human_bytes, human_count, one_line

GIB = 1 << 30
LWR = "LoRA Without Regret"
TINKER = "Tinker cookbook"
QLORA = "QLoRA"
PRACTICE = "convention"
MEMORY = "memory formula"
DATA = "your data"
MACHINE = "this machine"
MODEL = "the model's files"

EXPONENTS = {"llama": 0.781, "qwen": 0.0775}
LARGEST_RATE = 1e-2
ANCHORED_FROM = 1024
LEAST_STEPS = 100
SMALLEST_BATCH, LARGEST_BATCH = 4, 16
"""Rows a step: below the first steps are noise, above 32 LoRA learns less from the same rows."""
STEP_TOKENS = {"cuda": 16_384, "cpu": 2048}
"""Tokens of a micro-batch at most; half as many fill the device, more gain a few percent."""
PACKED_FROM = 2000
"""Rows from which on packing leaves steps enough."""
PACKED_TOKENS = 8192
"""A sequence is not made longer than that for packing alone."""
MOST_ROWS = 32
"""Rows in one step above which LoRA learns less from the same rows."""
FULL = 0.99
PADDED_BATCH = 8
"""Rows a batch for which padding is told, whatever the batch will be."""
MAX_EPOCHS = 20
LEAST_RANK = 16
TINY = 50_000_000
LARGE = 3_000_000_000

LADDER: tuple[GgufType, ...] = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")
"""Types worth recommending, best first."""
LESSER: tuple[GgufType, ...] = ("q4_k_m", "q4_k_s", "q4_0")
"""What is taken where memory is so short that everything counts."""
COMFORT = 0.8
"""Share of the free memory that a small model may take."""
COMFORT_LARGE = {"GPU": 0.5, "RAM": 0.0}
"""The same for a better type than the usual one of a large model; from RAM each byte costs speed."""
IMPORTANCE_TYPES = K_TYPES | {"q4_0"}


def power_of_two_below(value: float) -> int:
    """The largest power of two that is not above the value; at least 1."""
    return 1 << max(int(value), 1).bit_length() - 1


def power_of_two_above(value: float) -> int:
    """The smallest power of two that is not below the value; at least 1."""
    return 1 << max(math.ceil(value) - 1, 0).bit_length()


def power_of_two_near(value: float) -> int:
    """The power of two with the smallest ratio to the value; at least 1."""
    return 1 << max(round(math.log2(max(value, 1))), 0)


def rounded(value: float, digits: int = 2) -> float:
    """The value with so many significant digits."""
    return float(f"{value:.{digits - 1}e}")


def device(machine: Machine) -> Choice:
    """The GPU when PyTorch can use one."""
    if machine.device == "cuda":
        gpu = machine.gpu.gpus[0]
        return Choice("cuda", f"{gpu.name[:40]} has {human_bytes(gpu.free)} free", MACHINE)
    reason = "PyTorch here has no CUDA" if machine.gpu.gpus else "no NVIDIA GPU here"
    return Choice("cpu", f"{reason}; {machine.host.cores} CPU cores train", MACHINE)


def gpu_dtype(machine: Machine) -> Choice:
    """bfloat16 from compute capability 8.0 on; float16 before (it overflows more easily)."""
    capability = machine.gpu.gpus[0].compute_capability if machine.gpu.gpus else None
    if capability is None or capability >= (8, 0):
        known = f"compute capability {capability[0]}.{capability[1]}" if capability else "this GPU"
        return Choice("bfloat16", f"{known} computes in bfloat16", MACHINE)
    return Choice(
        "float16", f"compute capability {capability[0]}.{capability[1]} has no fast bfloat16", MACHINE
    )


def path(spec: ModelSpec, training: TrainingSettings) -> Choice:
    """Left to the run, with what it will be."""
    way = way_of(spec, training)
    if way.path == "fast":
        text = f"fast: this tool's own code knows {one_line(spec.model_type, 16)}: no padding, less memory"
        return Choice("auto", text, MODEL)
    why_not = SHARED if training.sharding == "fsdp" else fast_obstacle(spec, training.dora, training.method)
    words = why_not.removeprefix("The fast path ").removesuffix(".")
    return Choice("auto", f"general (transformers): the fast code {words}", MODEL)


def validation_split(rows: int) -> Choice:
    """10 % of the rows, at least 20 where that leaves most for training, 5 % of many."""
    if rows < 5:
        return Choice(0.0, f"{rows} rows are too few to hold any out", PRACTICE)
    if rows >= 4000:
        return Choice(0.05, f"5 % of {rows:,} rows are enough to measure on", PRACTICE)
    if rows >= 200:
        return Choice(0.1, f"{round(rows * 0.1)} of {rows:,} rows measure what was learned", PRACTICE)
    share = rounded(min(20 / rows, 0.2))
    return Choice(share, f"{round(rows * share)} of only {rows} rows; the rest is learned", PRACTICE)


def effective_batch(train_rows: int, epochs: float) -> int:
    """Rows a step: the largest power of two up to 16 that leaves at least 100 steps; at least 4."""
    wanted = power_of_two_below(train_rows * epochs / LEAST_STEPS)
    return min(max(wanted, SMALLEST_BATCH), LARGEST_BATCH)


def usual_epochs(train_rows: int) -> int:
    """3 below 1,000 rows, 2 up to 20,000, else 1."""
    return 3 if train_rows < 1000 else 2 if train_rows <= 20_000 else 1


def epochs(train_rows: int, rows_a_step: int) -> Choice:
    """The usual rounds, more where they would give under 100 steps."""
    usual = usual_epochs(train_rows)
    steps = max(math.ceil(train_rows / rows_a_step), 1)
    if usual * steps >= LEAST_STEPS:
        return Choice(float(usual), f"usual for {train_rows:,} rows; more only memorises them", PRACTICE)
    value = min(math.ceil(LEAST_STEPS / steps), MAX_EPOCHS)
    return Choice(
        float(value), f"{train_rows} rows are few: {value} rounds make {steps * value:,} steps", TINKER
    )


def rank(spec: ModelSpec, training: TrainingSettings, lengths: Lengths) -> Choice:
    """As many adapter parameters as trained tokens, between rank 16 and 128."""
    plain = training.model_copy(update={"method": "lora", "dora": False, "rank": 1})
    per_rank = max(adapter_parameters(plain, spec), 1)
    wanted = power_of_two_above(lengths.trained_tokens / per_rank)
    value = min(max(wanted, LEAST_RANK), 128)
    held = human_count(per_rank * value)
    return Choice(
        value, f"{held} parameters for {human_count(lengths.trained_tokens)} trained tokens", TINKER
    )


def learning_rate(spec: ModelSpec, rank: int, steps: int) -> Choice:
    """5e-5 x 10 x (2000/H)^p; from hidden size 1024 on no more than the usual rate for small batches.

    Below that width there is no evidence for the usual rate, and small models need larger steps. Runs of
    less than 100 steps like 15 instead of 10 times the rate of a full fine-tuning.
    """
    family = next((name for name in EXPONENTS if spec.model_type.startswith(name)), "llama")
    base = 5e-4 if steps >= LEAST_STEPS else 7.5e-4
    formula = base * (2000 / max(spec.hidden_size, 1)) ** EXPONENTS[family]
    anchor = _anchor(spec.parameters, rank)
    if spec.hidden_size >= ANCHORED_FROM and anchor < formula:
        text = f"usual for {human_count(spec.parameters)} parameters (a formula says {formula:.1e})"
        return Choice(anchor, text, QLORA)
    value = rounded(min(formula, LARGEST_RATE))
    short = "" if steps >= LEAST_STEPS else f", more for only {steps} step{'s' * (steps > 1)}"
    formula_words = f"{base * 1e4:g}e-4 x (2000 / {spec.hidden_size})^{EXPONENTS[family]}"
    text = f"for width {spec.hidden_size:,}{short}: {formula_words}"
    return Choice(value, text, TINKER if steps >= LEAST_STEPS else LWR)


def _anchor(parameters: int, rank: int) -> float:
    if parameters >= 30e9 or rank >= 128:
        return 1e-4
    return 2e-4 if parameters <= 13e9 else 1.5e-4


def warmup(steps: int) -> Choice:
    """5 % of the steps."""
    return Choice(0.05, f"the first {max(round(steps * 0.05), 1)} of {steps} steps start gently", PRACTICE)


def evaluation_interval(steps: int) -> Choice:
    """About eight measurements a run."""
    every = max(steps // 8, 1)
    return Choice(every, f"{steps // every} measurements in {steps} steps", PRACTICE)


def micro_batch_target(length: int, rows_a_step: int, device: str) -> int:
    """The batch of 8,000 to 16,000 tokens on a GPU, 1,000 to 2,000 on a CPU, in long rows; a power of two."""
    rows = power_of_two_below(STEP_TOKENS[device] / max(length, 1))
    return min(rows, power_of_two_below(rows_a_step))


def mixture_of_experts(spec: ModelSpec) -> bool:
    """Whether most weights are in experts, which the 4-bit quantization of a training does not reach."""
    family = ARCHITECTURES.get(spec.architecture)
    return "moe" in spec.model_type or bool(family and family.experts)


def sequence_lengths(spec: ModelSpec, lengths: Lengths, *, packing: bool = False) -> list[int]:
    """Lengths to try, best first: all rows whole, then 99 % and 95 % of them; multiples of 64.

    A packed sequence is longer where rows of such lengths would not fill one, but never longer than where
    more rows are whole: the next length is tried because memory is short.
    """
    limit = spec.context_length if spec.context_length >= 16 else 1 << 20
    rows = lengths.of_rows
    wanted = (rows.longest, rows.percentile_99, rows.percentile_95)
    found = [max(min(round_up(length, 64), limit), 16) for length in wanted]
    if packing:
        most = limit
        for at, length in enumerate(found):
            found[at] = most = _filling(lengths, length, most)
    return list(dict.fromkeys(found))


def _filling(lengths: Lengths, shortest: int, limit: int) -> int:
    """The least doubling of a length at which packed sequences are full, or the model's limit."""
    length = shortest
    while packed_rows(lengths, length)[1] < FULL and 2 * length <= min(limit, PACKED_TOKENS):
        length *= 2
    return length


def packing(spec: ModelSpec, lengths: Lengths, train_rows: int, *, padded: bool, device: str) -> Choice:
    """From 2,000 rows on, where a sequence holds few enough rows and the family keeps them apart.

    Where rows lie end to end anyway (not `padded`), it only gives each batch as many tokens as memory was
    planned for, which a GPU needs to be busy and a CPU does not.
    """
    longest = sequence_lengths(spec, lengths)[0]
    apart = _percent(random_padding(lengths, longest, PADDED_BATCH))
    alike = _percent(grouped_padding(lengths, longest, PADDED_BATCH))
    if not padded and (device == "cpu" or train_rows < PACKED_FROM):
        return Choice(False, f"rows lie end to end, so nothing is padded (it would be {apart})", DATA)
    if train_rows < PACKED_FROM:
        text = f"{train_rows:,} rows, like lengths together: {alike} padding instead of {apart}"
        return Choice(False, text, DATA)
    if general_pads(spec.architecture, spec.model_type):
        return Choice(False, f"not for this model; like lengths together: {alike} padding", MODEL)
    length = sequence_lengths(spec, lengths, packing=True)[0]
    rows, full = packed_rows(lengths, length)
    if rows > MOST_ROWS:
        return Choice(False, f"a sequence would hold {rows:.0f} rows, too many for a step", LWR)
    return Choice(True, f"batches of equal size, {_percent(1 - full)} short of full", DATA)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def rows_longer(lengths: Lengths, sequence_length: int) -> tuple[int, bool]:
    """How many rows have more tokens than that, and whether the count is exact or an upper bound."""
    lengths = lengths.of_rows
    if sequence_length >= lengths.longest:
        return 0, True
    if lengths.histogram:
        steps, rest = divmod(sequence_length, LENGTH_STEP)
        return sum(lengths.histogram[steps:]), not rest
    bounds = ((0.01, lengths.percentile_99), (0.05, lengths.percentile_95), (0.5, lengths.median))
    share = next((share for share, bound in bounds if sequence_length >= bound), 1.0)
    return math.ceil(share * lengths.rows), False


def rows_left_out(lengths: Lengths, sequence_length: int) -> str:
    """How many rows are longer, in words; empty when none is."""
    longer, exact = rows_longer(lengths, sequence_length)
    what, total = "answers" if lengths.sides else "rows", lengths.of_rows.rows
    if not longer:
        return ""
    if not exact and longer == total:
        return f"more than half of the {total:,} {what}"
    return f"{'' if exact else 'at most '}{longer:,} of {total:,} {what}"


def sequence_length(spec: ModelSpec, lengths: Lengths, value: int) -> Choice:
    """The reason for a chosen length."""
    left_out, lengths = rows_left_out(lengths, value), lengths.of_rows
    if left_out:
        limit = " (model's limit)" if value == spec.context_length else ""
        return Choice(value, f"{left_out} are longer{limit}, so cut or left out", DATA)
    if not lengths.exact:
        return Choice(value, f"the longest row seen has about {lengths.longest:,} tokens", DATA)
    return Choice(value, f"the longest row has {lengths.longest:,} tokens, so all fit", DATA)


def evaluation_rows(validation_rows: int) -> Choice:
    """Up to 64 held-out rows."""
    value = min(validation_rows, 64)
    if not value:
        return Choice(0, "no row is held out", DATA)
    return Choice(value, f"of {validation_rows:,} held-out rows; enough to see the difference", PRACTICE)


def max_new_tokens(lengths: Lengths, sequence_length: int) -> Choice:
    """Room for the longest answer of the data, with a quarter to spare."""
    longest = lengths.longest_answer
    if longest:
        value = min(max(round_up(longest + longest // 4, 16), 16), 2048)
        return Choice(value, f"the longest answer in the data has {longest:,} tokens", DATA)
    value = min(max(round_up(sequence_length // 2, 16), 32), 512)
    return Choice(value, f"half of the sequence length of {sequence_length:,}, at most 512", PRACTICE)


def export_name(spec: ModelSpec, data_path: str) -> Choice:
    """A name Ollama takes; none where the architecture cannot be exported."""
    if spec.export_reason:
        return Choice(None, f"no export: {spec.export_reason}", MODEL)
    data = "the shipped rows" if data_path == "bundled" else Path(data_path).name
    return Choice(suggest_name(spec, data_path), f"made of the model's name and {data}", PRACTICE)


def export_type(spec: ModelSpec, machine: Machine, context: int) -> Choice:
    """The most precise type that leaves a model of this size fast on this box, and why not its neighbours.

    A tiny model stays in 16 bit; up to 3 B parameters it is the best that fits. From there on Q4_K_M, since
    the time of an answer grows with the bytes of the file, unless a better one takes half of a GPU at most.
    """
    offers, room = type_offers(spec, machine, context), ollama_room(machine)
    if spec.parameters < TINY:
        whole, half = _size(offers["f16"].bytes), _size(offers["q8_0"].bytes)
        return Choice("f16", f"the model is tiny: {whole} with nothing lost, {half} as q8_0", PRACTICE)
    ladder = [name for name in LADDER if offers[name].available]
    large = spec.parameters >= LARGE and len(ladder) == len(LADDER)
    if room.free is None:
        chosen = offers[ladder[-1 if large else 0]]
        text = f"{_size(chosen.bytes)}; Ollama is on another host, its memory is not known"
        return Choice(chosen.name, text, PRACTICE)
    share = COMFORT_LARGE[room.place] if large else COMFORT
    fitting = (offers[name] for name in ladder if offers[name].needed <= share * room.free)
    lesser = (offers[name] for name in LESSER if offers[name].available and offers[name].fits)
    chosen = next(fitting, None) or next(lesser, offers[ladder[-1]])
    return Choice(chosen.name, _type_reason(chosen, offers, room), MEMORY)


def _type_reason(chosen: TypeOffer, offers: Mapping[GgufType, TypeOffer], room: Room) -> str:
    """`9.6 GiB of 23.5 GiB GPU`, then why not the next better and why not the next smaller type."""
    order = [name for name, offer in offers.items() if offer.available and name not in ("f32", "bf16")]
    at, free = order.index(chosen.name), room.free or 0
    if chosen.fits:
        better = offers[order[at - 1]]
        slower = f"{better.bytes / chosen.bytes - 1:.0%}".replace("%", " %")
        more = f"is {slower} slower" if better.fits else f"needs {_size(better.needed)}"
        words = f"{_share(chosen.needed, free)} {room.place}; {better.name} {more}"
    else:
        slow = ": part on the CPU" if room.place == "GPU" else ""
        words = f"needs {_size(chosen.needed)}, the {room.place} has {_size(free)}{slow}"
    if not all(offer.available for offer in offers.values()):
        return f"{words}; K types need xllamacpp"
    if at + 1 == len(order):
        return f"{words}; no smaller type"
    smaller = offers[order[at + 1]]
    loses = f", loses {smaller.loss / chosen.loss:.0f}x as much" if smaller.loss >= 2 * chosen.loss else ""
    return f"{words}; {smaller.name} saves {_size(chosen.bytes - smaller.bytes)}{loses}"


def _share(part: float, whole: float) -> str:
    """`1.3 of 23.0 GiB`, or with two units where they are not the same."""
    return f"{_size(part).removesuffix(' GiB' if whole >= GIB else ' MiB')} of {_size(whole)}"


def _size(count: float) -> str:
    """A size in few characters."""
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    return f"{count / (1 << 20):.0f} MiB" if count >= 1 << 20 else f"{count / 1024:.0f} KiB"


def importance(gguf_type: GgufType) -> Choice:
    """On: it costs nothing after a training and helps the small types."""
    if gguf_type in IMPORTANCE_TYPES:
        return Choice(True, f"{gguf_type} then keeps best what your own rows use", PRACTICE)
    return Choice(True, f"of no effect on {gguf_type}; helps the 4- to 6-bit types", PRACTICE)
