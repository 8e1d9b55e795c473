"""The rules behind the recommended values: each returns a value with the numbers that chose it.

Each choice names its source: "LoRA Without Regret" (2025), the Tinker cookbook's LoRA primer, QLoRA
(arXiv 2305.14314), a figure of this box or data, or practice where there is no better evidence.
"""

from __future__ import annotations

import math
from pathlib import Path

from ollama_tune.core.data.values import Lengths
from ollama_tune.core.machine.values import Machine
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.memory import adapter_parameters
from ollama_tune.core.plan.names import suggest_name
from ollama_tune.core.plan.values import Choice
from ollama_tune.core.text import human_bytes, human_count

LWR = "LoRA Without Regret"
TINKER = "Tinker cookbook"
QLORA = "QLoRA"
PRACTICE = "practice"
MEMORY = "memory formula"
DATA = "your data"
MACHINE = "this machine"
MODEL = "the model's files"

EXPONENTS = {"llama": 0.781, "qwen": 0.0775}
LARGEST_RATE = 1e-2
ANCHORED_FROM = 1024
LEAST_STEPS = 100
TINY_STEPS = 1000
MAX_EPOCHS = 20
TINY = 50_000_000


def power_of_two_below(value: float) -> int:
    """The largest power of two that is not above the value; at least 1."""
    return 1 << max(int(value), 1).bit_length() - 1


def power_of_two_above(value: float) -> int:
    """The smallest power of two that is not below the value; at least 1."""
    return 1 << max(math.ceil(value) - 1, 0).bit_length()


def round_up(value: int, step: int) -> int:
    """The value rounded up to a multiple of `step`."""
    return -(-value // step) * step


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


def validation_split(rows: int) -> Choice:
    """10 % of the rows, at least 20 where that leaves most for training, 5 % of many."""
    if rows < 5:
        return Choice(0.0, f"{rows} rows are too few to keep any out", PRACTICE)
    if rows >= 4000:
        return Choice(0.05, f"5 % of {rows:,} rows are enough to measure on", PRACTICE)
    if rows >= 200:
        return Choice(0.1, f"{round(rows * 0.1)} of {rows:,} rows measure what was learned", PRACTICE)
    share = rounded(min(20 / rows, 0.2))
    return Choice(share, f"{round(rows * share)} of only {rows} rows; the rest is learned", PRACTICE)


def effective_batch(train_rows: int) -> int:
    """Rows a step: small is better for LoRA, and an epoch should have about 100 steps."""
    return min(max(power_of_two_below(train_rows / LEAST_STEPS), 4), 16)


def epochs(train_rows: int, rows_a_step: int, parameters: int) -> Choice:
    """3 below 1,000 rows, 2 below 20,000, else 1; more where that gives under 100 steps.

    A tiny model gets 1,000 steps, which cost it seconds: it knows little and must learn more.
    """
    usual = 3 if train_rows < 1000 else 2 if train_rows <= 20_000 else 1
    tiny = parameters < TINY
    needed = math.ceil((TINY_STEPS if tiny else LEAST_STEPS) * rows_a_step / max(train_rows, 1))
    if needed <= usual:
        return Choice(float(usual), f"usual for {train_rows:,} rows; more only memorises them", PRACTICE)
    value = min(needed, MAX_EPOCHS)
    why = "a tiny model must learn more" if tiny else f"{train_rows} rows are few"
    steps = math.ceil(train_rows / rows_a_step) * value
    return Choice(float(value), f"{why}: {value} rounds make {steps:,} steps", TINKER)


def rank(spec: ModelSpec, lengths: Lengths) -> Choice:
    """As many adapter parameters as trained tokens, between rank 16 and 128."""
    per_rank = max(adapter_parameters(spec, 1), 1)
    wanted = power_of_two_above(lengths.trained_tokens / per_rank)
    value = min(max(wanted, 16), 128)
    held = human_count(per_rank * value)
    return Choice(value, f"{held} parameters for {human_count(lengths.trained_tokens)} trained tokens", LWR)


def learning_rate(spec: ModelSpec, rank: int) -> Choice:
    """5e-5 x 10 x (2000/H)^p; from hidden size 1024 on no more than the usual rate for small batches.

    Below that width there is no evidence for the usual rate, and small models need larger steps.
    """
    family = next((name for name in EXPONENTS if spec.model_type.startswith(name)), "llama")
    formula = 5e-5 * 10 * (2000 / max(spec.hidden_size, 1)) ** EXPONENTS[family]
    anchor = _anchor(spec.parameters, rank)
    if spec.hidden_size >= ANCHORED_FROM and anchor < formula:
        text = f"usual for {human_count(spec.parameters)} parameters (formula: {formula:.1e})"
        return Choice(anchor, text, QLORA)
    value = rounded(min(formula, LARGEST_RATE))
    return Choice(value, f"5e-4 x (2000 / hidden size {spec.hidden_size})^{EXPONENTS[family]}", TINKER)


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


def micro_batch_target(lengths: Lengths, rows_a_step: int, on_gpu: bool) -> int:
    """The batch that gives about 8,000 tokens at once on a GPU, 2,000 on a CPU; a power of two."""
    tokens = 8192 if on_gpu else 2048
    return min(power_of_two_below(tokens / max(lengths.percentile_95, 1)), power_of_two_below(rows_a_step))


def sequence_lengths(spec: ModelSpec, lengths: Lengths) -> list[int]:
    """Lengths to try, best first: all rows whole, then 99 % and 95 % of them; multiples of 64."""
    limit = spec.context_length if spec.context_length >= 16 else 1 << 20
    wanted = (lengths.longest, lengths.percentile_99, lengths.percentile_95)
    found = [max(min(round_up(length, 64), limit), 16) for length in wanted]
    return list(dict.fromkeys(found))


def rows_left_out(lengths: Lengths, sequence_length: int) -> str:
    """How many rows are longer, in words, as exactly as the percentiles allow; empty when none is."""
    if sequence_length >= lengths.longest:
        return ""
    for share, bound in ((0.01, lengths.percentile_99), (0.05, lengths.percentile_95), (0.5, lengths.median)):
        if sequence_length >= bound:
            return f"at most {math.ceil(share * lengths.rows):,} of {lengths.rows:,} rows"
    return f"more than half of the {lengths.rows:,} rows"


def sequence_length(spec: ModelSpec, lengths: Lengths, value: int) -> Choice:
    """The reason for a chosen length."""
    left_out = rows_left_out(lengths, value)
    if not left_out:
        return Choice(value, f"the longest row has {lengths.longest:,} tokens, so all fit", DATA)
    limit = " (the model's limit)" if value == spec.context_length else ""
    return Choice(value, f"{left_out} are longer{limit} and left out", DATA)


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


def export_type(spec: ModelSpec) -> Choice:
    """q8_0, or f16 for a model so small that eight bits save nothing worth having."""
    if spec.parameters < TINY:
        size = human_bytes(2 * spec.parameters)
        return Choice("f16", f"the model is tiny ({size}), so nothing need be lost", PRACTICE)
    saved = human_bytes((2 - 34 / 32) * spec.parameters)
    return Choice("q8_0", f"{saved} less than 16 bit, with hardly any loss", PRACTICE)
