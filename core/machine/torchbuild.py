"""What the installed PyTorch was built for, told from its package without importing it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_CUDA_RUNTIMES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu11")
LEAST_CAPABILITY = {13: (7, 5)}
"""The oldest GPUs that a major version of CUDA still compiles for (release notes of CUDA 13.0)."""


@dataclass(frozen=True)
class TorchBuild:
    """PyTorch's version, and whether it is built for `cuda`, `rocm` or `cpu`; empty where that is not told.

    `cuda` is the major version of the CUDA it brings, 0 where unknown.
    """

    version: str
    kind: str
    cuda: int = 0


def torch_build(installed: str | None = None) -> TorchBuild:
    """The build by PyTorch's version, such as `2.13.0+cu130`; without a suffix, by the libraries beside it.

    `installed` stands in for the version of the installed package.
    """
    found = _version("torch") if installed is None else installed
    suffix = found.partition("+")[2]
    if suffix == "cpu":
        return TorchBuild(found, "cpu")
    if suffix.startswith("rocm"):
        return TorchBuild(found, "rocm")
    if number := re.fullmatch(r"cu(\d+)\d", suffix):
        return TorchBuild(found, "cuda", int(number[1]))
    if installed is None and (major := _runtime()):
        return TorchBuild(found, "cuda", major)
    return TorchBuild(found, "")


def _runtime() -> int:
    """The major version of the CUDA libraries that the package index's PyTorch installs beside itself."""
    for name in _CUDA_RUNTIMES:
        major = _version(name).partition(".")[0]
        if major.isdecimal():
            return int(major)
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
