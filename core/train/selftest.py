"""Tiny computations of everything that training takes for granted, for `ollama-tune doctor`.

Each compares with what plain products in float64 or float32 give, on the CPU and on every GPU, and takes a
fraction of a second; a library that crashes takes only the doctor's own process with it.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ollama_tune.core.machine.doctor import Check, fail, ok, warn
from ollama_tune.core.text import one_line

if TYPE_CHECKING:
    from ollama_tune.core.train.path import Batch, TrainPath

CPU = torch.device("cpu")
FORMATS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""By which share of its length a product in each format may differ from the one in float64."""
NF4_ERROR = 0.12
"""The same for normal random numbers rounded to NF4 (0.095 in theory, 0.092 to 0.096 measured)."""
SLOPE, NEAR = 0.01, 0.01
"""By how much the gradient's length may miss the slope (measured: 1e-5), and how far apart the losses are."""
REPAIR = "Install torch again: pip install --force-reinstall torch"
REINSTALL = "Install bitsandbytes again; until then choose quantization none."
CPU_BUILD = "Run with training.device cpu meanwhile; install the PyTorch build for this driver (pytorch.org)."
FULL = "Free some of its memory (`ollama-tune probe` names who holds it) and ask again."

Found = Iterator[Check]


def devices() -> list[torch.device]:
    """Every GPU that torch shows."""
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]


def products() -> Found:
    """Import torch and multiply on the CPU in each number format."""
    wrong = _wrong_formats(CPU)
    if wrong:
        yield fail(f"CPU: wrong products in {', '.join(wrong)}", REPAIR)
    else:
        threads = torch.get_num_threads()
        yield ok(f"CPU: float32, bfloat16 and float16, {threads} thread{'' if threads == 1 else 's'}")


def gpu_products() -> Found:
    """Multiply on every GPU in each number format; says so where a CUDA build finds no GPU."""
    built = torch.version.cuda or torch.version.hip
    if not built:
        return
    if not torch.cuda.is_available():
        yield from _no_gpu(built)
    for device in devices():
        yield from _guarded(device, _gpu_product)


def _no_gpu(built: str) -> Found:
    from ollama_tune.core.machine.gpus import read_gpus

    if read_gpus().gpus:
        yield fail(f"the driver shows a GPU that torch (CUDA {built}) cannot use", CPU_BUILD)


def _gpu_product(device: torch.device) -> Found:
    own, known = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if not is_compiled_for(own, known):
        yield fail(f"torch has no code for compute capability {own[0]}.{own[1]}", CPU_BUILD)
        return
    wrong = _wrong_formats(device)
    if wrong:
        yield fail(f"wrong products in {', '.join(wrong)}", "Test the card's memory; try another card.")
    else:
        yield ok(f"float32, bfloat16 and float16, code for {own[0]}.{own[1]}")


def is_compiled_for(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether `torch.cuda.get_arch_list()` holds code for a GPU: binaries (`sm_86`) run on later ones of the
    same major version, portable code (`compute_90`) on all later ones; `sm_90a` on that one alone."""
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if found is None:
            continue
        least = int(found[2]), int(found[3])
        same = capability == least or (least[0] == capability[0] and not found[4])
        if capability >= least and (same or found[1] == "compute"):
            return True
    return not architectures


def _wrong_formats(device: torch.device) -> list[str]:
    one, other = (_normal(96, 64, seed=seed) for seed in (1, 2))
    right = one.double() @ other.double().t()
    return [
        str(dtype).removeprefix("torch.")
        for dtype, share in FORMATS.items()
        if not _near(one.to(device, dtype) @ other.to(device, dtype).t(), right, share)
    ]


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _near(found: torch.Tensor, right: torch.Tensor, share: float) -> bool:
    """Whether the difference is at most a share of the length of what is right."""
    difference = (found.detach().cpu().double() - right.detach().cpu().double()).norm()
    return bool(difference <= share * right.detach().cpu().double().norm())


def _guarded(device: torch.device, work: Callable[[torch.device], Found]) -> Found:
    """The checks of one device, which the text names; one without memory is no fault, other errors are."""
    place = f"GPU {device.index}" if device.type == "cuda" else "CPU"
    try:
        for check in work(device):
            yield replace(check, found=f"{place}: {check.found}")
    except torch.cuda.OutOfMemoryError:
        yield warn(f"{place}: no memory is free for a trial", FULL)
    except RuntimeError as error:
        yield fail(f"{place}: {one_line(str(error), 120)}", REPAIR if device.type == "cpu" else CPU_BUILD)


def optimizer() -> Found:
    """One fused AdamW step on the CPU and on each GPU against its formula."""
    for device in (CPU, *devices()):
        yield from _guarded(device, _adamw)


def _adamw(device: torch.device) -> Found:
    from ollama_tune.core.train.optimizer import AdamW

    start, gradient = _normal(64), _normal(64, seed=1)
    weight = torch.nn.Parameter(start.to(device, copy=True))
    weight.grad = gradient.to(device)
    AdamW([weight], lr=0.1, weight_decay=0.0, eps=1e-8, fused=True).step()
    right = start - 0.1 * gradient.sign()
    if _near(weight, right, 1e-4):
        yield ok("a fused AdamW step is right")
    else:
        yield fail("a fused AdamW step is wrong", REPAIR)


def fast_path() -> Found:
    """Loss and gradient of the bundled model on the fast path, on the CPU and on each GPU."""
    for device in (CPU, *devices()):
        yield from _guarded(device, _fast)


def _fast(device: torch.device) -> Found:
    """Rows together and alone (`check`), and the gradient against the slope of the loss along it."""
    from ollama_tune.core.data.values import Example
    from ollama_tune.core.errors import TuneError
    from ollama_tune.core.paths import asset
    from ollama_tune.core.plan.settings import TrainingSettings
    from ollama_tune.core.train.fast.path import make_fast

    training = TrainingSettings.model_validate({"device": device.type, "rank": 2, "alpha": 2})
    ids = [tuple(range(20 + row, 52 + 3 * row)) for row in range(3)]
    rows = [Example("", row, (False, *[True] * (len(row) - 1)), ((0, 0),) * len(row)) for row in ids]
    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            path = make_fast(asset("model"), training, "doctor")
            path.check(rows)
            share = _slope(path, path.collate(rows))
    except TuneError as error:
        yield fail(one_line(error.what, 120), error.fix)
        return
    if abs(share - 1) <= SLOPE:
        yield ok("loss and gradient of the bundled model are right")
    else:
        fix = "Set training.path to general, and report this box."
        yield fail(f"the gradient is {share:.3g} times the slope of the loss", fix)


def _slope(path: TrainPath, batch: Batch) -> float:
    """The loss' slope along its gradient by two losses near by, as a share of the gradient's length."""
    path.train(True)
    path.loss(batch).backward()  # type: ignore[no-untyped-call]
    gradients = [weight.grad.clone() for weight in path.weights.values() if weight.grad is not None]
    length = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
    losses = []
    path.train(False)
    with torch.no_grad():
        for way in (NEAR, -2 * NEAR):
            for weight, gradient in zip(path.weights.values(), gradients, strict=True):
                weight.add_(gradient, alpha=way / length)
            losses.append(float(path.loss(batch)))
    return (losses[0] - losses[1]) / (2 * NEAR * length)


def attention() -> Found:
    """Which attention kernel each GPU uses, and that SDPA on the CPU gives what plain products give."""
    from ollama_tune.core.train.fast.attention import RowsAttention, Rule
    from ollama_tune.core.train.fast.kernels import KernelAttention, agree, by_sdpa

    rule = Rule(4, 2, 64, 0.125)
    if agree(KernelAttention(rule, None, by_sdpa), RowsAttention(rule, None), CPU, torch.bfloat16):
        yield ok("CPU: SDPA gives what plain products give")
    else:
        yield fail("CPU: SDPA gives wrong results", f"{REPAIR} The fast path does without it.")
    for device in devices():
        yield from _guarded(device, _gpu_attention)


def _gpu_attention(device: torch.device) -> Found:
    from torch.nn.attention import SDPBackend

    from ollama_tune.core.train.fast.attention import RowsAttention, Rule
    from ollama_tune.core.train.fast.kernels import KernelAttention, by_flash, choose_attention

    dtype = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    chosen = choose_attention(Rule(4, 2, 64, 0.125), None, device, dtype)
    kinds = {"flash": SDPBackend.FLASH_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION}
    kinds |= {"cuDNN": SDPBackend.CUDNN_ATTENTION}
    backends = ", ".join(name for name, kind in kinds.items() if _sdpa_works(kind, device, dtype)) or "none"
    if isinstance(chosen, RowsAttention):
        slow = "Training works and is slower; another PyTorch build may have the kernels of this GPU."
        yield warn(f"no kernel agrees with plain products (SDPA: {backends})", slow)
        return
    assert isinstance(chosen, KernelAttention)
    name = "torch's varlen kernel" if chosen.kernel is by_flash else "SDPA row by row"
    yield ok(f"{name}; SDPA has {backends}")


def _sdpa_works(kind: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one kind of SDPA gives what plain products give, forward; torch warns of those it lacks."""
    from torch.nn.attention import sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    states = [_normal(1, 4, 32, 64, seed=seed) for seed in range(3)]
    right = (states[0] @ states[1].transpose(2, 3) / 8).softmax(-1) @ states[2]
    try:
        with warnings.catch_warnings(), sdpa_kernel(kind):
            warnings.simplefilter("ignore")
            query, key, value = (state.to(device, dtype) for state in states)
            found = scaled_dot_product_attention(query, key, value)
        return _near(found, right, 2e-2)
    except RuntimeError:
        return False


def four_bit() -> Found:
    """Import bitsandbytes; round to NF4 and back, and a gradient through a 4-bit product, on every device."""
    for device in (CPU, *devices()):
        yield from _guarded(device, _nf4)


def _nf4(device: torch.device) -> Found:
    import bitsandbytes
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = _normal(128, 256).to(device)
    data, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    back = dequantize_4bit(data, state)
    inputs = _normal(4, 256, seed=1).to(device).requires_grad_()
    out = bitsandbytes.matmul_4bit(inputs, data.t(), state)
    slope = _normal(4, 128, seed=2).to(device)
    (gradient,) = torch.autograd.grad(out, inputs, slope)
    if not _near(back, weight, NF4_ERROR):
        yield fail("numbers do not come back from NF4", REINSTALL)
    elif not (_near(out, inputs @ back.t(), 1e-2) and _near(gradient, slope @ back, 1e-2)):
        yield fail("a 4-bit product or its gradient is wrong", REINSTALL)
    else:
        yield ok("NF4, its product and its gradient are right")


def eight_bit() -> Found:
    """One step of bitsandbytes' 8-bit AdamW, on the CPU and on each GPU; there of the paged one too."""
    for device in (CPU, *devices()):
        yield from _guarded(device, _adamw_8bit)


def _adamw_8bit(device: torch.device) -> Found:
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    for kind in (AdamW8bit, PagedAdamW8bit) if device.type == "cuda" else (AdamW8bit,):
        start, gradient = _normal(8192), _normal(8192, seed=1)
        weight = torch.nn.Parameter(start.to(device, copy=True))
        weight.grad = gradient.to(device)
        kind([weight], lr=0.1, weight_decay=0.0).step()
        if not _near(weight, start - 0.1 * gradient.sign(), 0.05):
            yield fail(
                f"a step of {kind.__name__} is wrong", "Use optimizer adamw, or install bitsandbytes again."
            )
            return
    yield ok("a step is right" + (", paged too" if device.type == "cuda" else ""))


def general_path() -> Found:
    """A loss and a gradient through transformers and peft: a Llama of a few numbers with LoRA."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "vocab_size": 64,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **sizes))
        model: Any = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        ids = torch.arange(12)[None]
        model(input_ids=ids, labels=ids).loss.backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    whole = all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in trained)
    if trained and whole and any(bool(weight.grad.any()) for weight in trained):
        yield ok("a model with an adapter learns")
    else:
        yield fail("no gradient reaches the adapter", "Install transformers and peft in their ranges.")
