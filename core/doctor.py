"""Everything that `ollama-tune doctor` tries, in order, and how it is spread over processes.

What may hang or crash is tried in processes of its own, side by side, each trial within its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ollama_tune.core.machine.doctor import Check, Part, Trial

_BOX, _FOLDERS = "ollama_tune.core.machine.doctor_box:", "ollama_tune.core.machine.doctor_folders:"
_LINKS, _RUNS = "ollama_tune.core.machine.doctor_links:", "ollama_tune.core.runs.doctor:"
_TRAIN, _EXPORT = "ollama_tune.core.train.selftest:", "ollama_tune.core.export.selftest:"

DRIVER = "The NVIDIA driver does not answer: see `nvidia-smi` and `sudo dmesg`, or restart this box."
DISK = "The disk does not answer: set OLLAMA_TUNE_HOME to a folder on a local disk."
TORCH = "Install torch again in the range of this version: pip install --force-reinstall torch"
FOUR_BIT = "Install bitsandbytes again; until then choose quantization none."
PEFT = "Install transformers and peft again; the fast path works without them."
GPU = "Update the driver or install another PyTorch build; training.device cpu works without the GPU."

BOX = (
    Trial("Versions", "versions", f"{_BOX}versions", 10.0),
    Trial("GPU", "GPU", f"{_BOX}gpus", 10.0, DRIVER),
    Trial("This box", "memory", f"{_BOX}memory"),
    Trial("This box", "CPU", f"{_BOX}cpu"),
    Trial("This box", "/dev/shm", f"{_BOX}shared_memory"),
    Trial("This box", "open files", f"{_BOX}open_files"),
    Trial("This box", "clock", f"{_BOX}clock"),
    Trial("Folders", "runs", f"{_FOLDERS}runs", 5.0, DISK),
    Trial("Folders", "lock", f"{_FOLDERS}lock", 5.0, DISK),
    Trial("Folders", "models", f"{_FOLDERS}models", 5.0, DISK),
    Trial("Folders", "answers", f"{_FOLDERS}state", 5.0, DISK),
    Trial("Folders", "cache", f"{_FOLDERS}cache", 5.0, DISK),
    Trial("Folders", "settings", f"{_FOLDERS}config", 5.0, DISK),
    Trial("Folders", "temporary", f"{_FOLDERS}temporary", 5.0, "Set TMPDIR to a folder on a local disk."),
    Trial("Folders", "hub cache", f"{_FOLDERS}hub_cache", 5.0, "Set HF_HOME to a folder on a local disk."),
    Trial("Runs", "runs", f"{_RUNS}going", 5.0, DISK),
    Trial("Runs", "logout", f"{_RUNS}logout", 15.0),
)
LINKS = (
    Trial("Ollama", "Ollama", f"{_LINKS}ollama", 5.0, "Check OLLAMA_HOST."),
    Trial("Hub", "hub", f"{_LINKS}hub", 5.0, "Check HF_HOME."),
)
REACH = Trial("Hub", "reach", f"{_LINKS}hub_reach", 8.0, "Check the network; local models need no hub.")
TORCH_TRIALS = (
    Trial("Computing", "torch", f"{_TRAIN}products", 60.0, TORCH),
    Trial("Computing", "torch on GPU", f"{_TRAIN}gpu_products", 30.0, GPU, "torch"),
    Trial("Computing", "AdamW", f"{_TRAIN}optimizer", 20.0, GPU, "torch"),
    Trial("Computing", "attention", f"{_TRAIN}attention", 20.0, GPU, "torch"),
    Trial("Computing", "fast path", f"{_TRAIN}fast_path", 30.0, "Set training.path to general.", "torch"),
    Trial("Computing", "bitsandbytes", f"{_TRAIN}four_bit", 60.0, FOUR_BIT, "torch"),
    Trial("Computing", "8-bit AdamW", f"{_TRAIN}eight_bit", 30.0, "Use optimizer adamw.", "bitsandbytes"),
    Trial("Computing", "general path", f"{_TRAIN}general_path", 60.0, PEFT, "torch"),
)
"""In one process, as importing torch costs more than all of them; after a crash the rest is tried anew."""
EXPORT_TRIALS = (
    Trial("Computing", "quantizer", f"{_EXPORT}quantizer", 30.0, "Choose the type q8_0."),
    Trial("Computing", "llama.cpp", f"{_EXPORT}llama", 30.0, "pip install --force-reinstall xllamacpp"),
)

QUICK = (BOX, LINKS)
WHOLE = (BOX, (*LINKS, REACH), TORCH_TRIALS, EXPORT_TRIALS)
CALM = {"OMP_WAIT_POLICY": "passive", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TRANSFORMERS_VERBOSITY": "error"}
"""Threads that do not spin beside the other parts, and GPUs in the order of NVML."""


def examine(
    quick: bool = False,
    tell: Callable[[str], None] = lambda trial: None,
    parts: Sequence[Sequence[Trial]] | None = None,
) -> Iterator[Check]:
    """Try everything and yield each check as it comes, in the order of the tables.

    `quick` leaves out what needs seconds: libraries at work and the hub. `tell` gets the name of the trial
    that is waited for. `parts` replaces the tables; each part has a process of its own.
    """
    chosen = parts if parts is not None else QUICK if quick else WHOLE
    going = [Part(trials, CALM) for trials in chosen]
    try:
        for part in going:
            yield from part.checks(tell)
    finally:
        for part in going:
            part.stop()
