"""GPUs that this version does not train on: named as what they are, each with the reason."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

from ollama_tune.core.machine.host import ROOT, read_memory
from ollama_tune.core.machine.torchbuild import TorchBuild
from ollama_tune.core.machine.values import OtherGpu

AMD_VENDOR, NVIDIA_VENDOR = "0x1002", "0x10de"
DISPLAY_CLASS = "0x03"
"""The PCI class of graphics cards, with or without a screen."""


def other_gpus(torch: TorchBuild, root: Path = ROOT) -> tuple[OtherGpu, ...]:
    """AMD GPUs that the kernel knows, and Apple's; `root` is where /sys and /dev lie."""
    if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        available, total = read_memory(root)
        return (OtherGpu("Apple", "Apple GPU (MPS)", total, available, _apple_reason()),)
    return tuple(_amd(torch, root))


def has_nvidia_card(root: Path = ROOT) -> bool:
    """Whether an NVIDIA graphics card is in this computer, with or without its driver."""
    return any(
        _text(device / "vendor") == NVIDIA_VENDOR and _text(device / "class").startswith(DISPLAY_CLASS)
        for device in (root / "sys/bus/pci/devices").glob("*")
    )


def _apple_reason() -> str:
    return (
        "An Apple GPU (MPS) is here, but 4-bit training and the memory plan of ollama-tune are made for "
        "NVIDIA's and were never tried on it, so it is not used."
    )


def _amd_reason(torch: TorchBuild, name: str) -> str:
    build = "even with this ROCm build of PyTorch" if torch.kind == "rocm" else "which needs a ROCm PyTorch"
    return f"An {name} is here, {build}; training on it was never tried with ollama-tune, so it is not used."


def _amd(torch: TorchBuild, root: Path) -> Iterator[OtherGpu]:
    """By ROCm's list of devices; where its driver part is missing, by the graphics cards' own files."""
    found, cards = list(_kfd_names(root)), list(_amd_cards(root))
    for number in range(max(len(found), len(cards), int((root / "dev/kfd").exists()))):
        name = f"AMD GPU ({found[number]})" if number < len(found) and found[number] else "AMD GPU"
        total, free = cards[number] if number < len(cards) else (None, None)
        yield OtherGpu("AMD", name, total, free, _amd_reason(torch, name))


def _kfd_names(root: Path) -> Iterator[str]:
    """The instruction set of every GPU node, such as `gfx1100`; nodes without one are CPUs."""
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    for node in sorted(nodes.glob("*"), key=lambda path: (len(path.name), path.name)):
        fields = dict(line.partition(" ")[::2] for line in _text(node / "properties").splitlines())
        target = fields.get("gfx_target_version", "").strip()
        if target.isdecimal() and int(target):
            major, minor, step = int(target) // 10000, int(target) // 100 % 100, int(target) % 100
            yield f"gfx{major}{minor:x}{step:x}"


def _amd_cards(root: Path) -> Iterator[tuple[int | None, int | None]]:
    """Total and free bytes of every AMD card; the `-` in a name marks a connector of a card."""
    for card in sorted((root / "sys/class/drm").glob("card*")):
        device = card / "device"
        if "-" in card.name or _text(device / "vendor") != AMD_VENDOR:
            continue
        total, used = (_text(device / f"mem_info_vram_{kind}") for kind in ("total", "used"))
        known = total.isdecimal() and used.isdecimal()
        yield (int(total), max(int(total) - int(used), 0)) if known else (None, None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
