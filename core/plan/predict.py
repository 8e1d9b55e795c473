"""The predicted peak of GPU memory of any settings, by the closed formula or by simulation.

The simulation imports torch and transformers, so it runs in a child process that answers many requests.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import psutil

from ollama_tune.core.errors import TuneError, UsageError
from ollama_tune.core.models.spec import check_config
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.plan.fast_formula import formula_of
from ollama_tune.core.plan.request import MemoryRequest
from ollama_tune.core.plan.shape import Shape
from ollama_tune.core.plan.sharding import of_many

Method = Literal["formula", "simulation"]
CUDA_CONTEXT = int(0.8 * (1 << 30))
"""What the CUDA context and the loaded kernels take besides PyTorch's memory; by others' figures."""
RESERVED = {"expandable": 1.02, "padded": 1.10, "native": 1.08}
"""Reserved memory as a multiple of the allocated, by allocator and rows."""
TIMEOUT = 120.0
POLITE = 10
_PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "loss", "workspaces")


@dataclass(frozen=True)
class Prediction:
    """A predicted peak in bytes; the `parts` add up to `nvml_bytes`.

    Allocated: live tensors. Reserved: what PyTorch holds for them. NVML: reserved and the CUDA context.
    `notes` are sentences on what the figure rests on.
    """

    allocated_bytes: int
    reserved_bytes: int
    nvml_bytes: int
    parts: Mapping[str, int]
    method: Method
    notes: tuple[str, ...] = ()

    @property
    def allocated(self) -> dict[str, int]:
        """The parts of `allocated_bytes`."""
        return {name: self.parts[name] for name in _PARTS}

    def to_json(self) -> dict[str, Any]:
        """As the command prints it."""
        found: dict[str, Any] = {
            "allocated_bytes": self.allocated_bytes,
            "reserved_bytes": self.reserved_bytes,
            "nvml_bytes": self.nvml_bytes,
            "parts": dict(self.parts),
            "method": self.method,
        }
        return found | ({"notes": list(self.notes)} if self.notes else {})


def read_model_config(folder: Path, *, any_form: bool = False) -> dict[str, Any]:
    """The tree of a model folder's `config.json`; `TuneError` where it is absent or cannot be trained.

    Of a model that also sees or hears it is the part that writes text. With `any_form` only what decides
    memory counts: a checkpoint that is quantized already and one that names no class are fine too.
    """
    config = read_json(folder / "config.json")
    if config is None:
        raise TuneError(f"{folder} has no config.json.", "Give the folder of a model.")
    text = config.get("text_config")
    if isinstance(text, dict):
        return text
    if not any_form:
        check_config(config)
    elif not isinstance(config.get("model_type"), str):
        raise TuneError(f"The config.json in {folder} names no model_type.", "Give the folder of a model.")
    return config


def by_formula(config: Mapping[str, Any], request: MemoryRequest, *notes: str) -> Prediction:
    """The closed formula's figure, at once; `TuneError` for what it does not cover."""
    shape = Shape.of_config(config)
    _check_covered(shape, request)
    if not shape.known:
        notes += (f"The formula is for layers like Llama's; it was not tried on {shape.model_type!r}.",)
    return _prediction(formula_of(shape, request).parts(), request, "formula", None, notes)


def _check_covered(shape: Shape, request: MemoryRequest) -> None:
    if request.kbit_preparation:
        raise TuneError(
            "The closed formula does not cover kbit_preparation.", "Use the simulation, or leave it out."
        )
    known = list(shape.linear())
    for target in request.targets if isinstance(request.targets, list) else []:
        if target.rpartition(".")[2] not in known:
            close = difflib.get_close_matches(target, known, n=1)
            raise UsageError(
                f"The model has no linear layer called {target!r}.",
                f"Did you mean {close[0]!r}?" if close else f"Choose from {', '.join(known)}.",
            )


def _prediction(
    parts: Mapping[str, int],
    request: MemoryRequest,
    method: Method,
    reserved: int | None,
    notes: tuple[str, ...],
) -> Prediction:
    allocated = sum(parts.values())
    rows = "padded" if request.padded else "native"
    factor = RESERVED["expandable" if request.expandable_segments else rows]
    held = max(reserved if reserved is not None else int(allocated * factor), allocated)
    shown = {name: parts.get(name, 0) for name in _PARTS}
    shown |= {"other": held - allocated, "context": CUDA_CONTEXT}
    return Prediction(allocated, held, held + CUDA_CONTEXT, shown, method, notes)


class Simulator:
    """The child process that simulates; started at the first request, ended by `close`.

    A `polite` one leaves the processor to others. Another thread may close it: a request that waits for its
    answer then ends with a `TuneError`.
    """

    def __init__(self, timeout: float = TIMEOUT, *, polite: bool = False) -> None:
        self._timeout = timeout
        self._polite = polite
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def predict(self, config: Mapping[str, Any], request: MemoryRequest) -> Prediction:
        """The simulated peak; `TuneError` where the libraries cannot, `UsageError` for wrong settings."""
        answer = self._ask({"config": dict(config), "settings": request.model_dump()})
        if "error" in answer:
            error = answer["error"]
            kind = UsageError if error["refused"] else TuneError
            raise kind(error["what"], error["fix"], details=error["details"])
        notes = tuple(
            f"The footprint of the operator {name} is not known; its results alone are counted."
            for name in answer["unknown"]
        )
        return _prediction(answer["parts"], request, "simulation", answer.get("reserved_bytes"), notes)

    def close(self) -> None:
        """End the child process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        errors, self._errors = self._errors, None
        if errors is not None:
            errors.close()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the child without a GPU, so that it makes no CUDA context, and without the network."""
        hidden = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "ollama_tune.core.train.simulate"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | hidden | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        if self._polite:
            with contextlib.suppress(psutil.Error):
                psutil.Process(process.pid).nice(POLITE)
        return process

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = self._line(process)
            found: dict[str, Any] = json.loads(line)
        except (OSError, ValueError) as error:
            raise self._broken() from error
        return found

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The next line of the child's output; `TimeoutError` (an `OSError`) after the time limit."""
        assert process.stdout is not None
        end, found = time.monotonic() + self._timeout, b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                left = end - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TimeoutError
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    raise BrokenPipeError
                found += part
        return found

    def _broken(self) -> TuneError:
        errors = self._errors
        if errors is None:
            return TuneError("The simulation was ended.", "The closed formula still gives a figure.")
        errors.seek(0)
        details = errors.read()[-4000:].decode(errors="replace")
        self.close()
        return TuneError(
            "The simulation ended or took too long without an answer.",
            "The closed formula still gives a figure.",
            details=details,
        )


def predict_peak(
    config: Mapping[str, Any],
    request: MemoryRequest,
    method: Method = "simulation",
    simulator: Simulator | None = None,
) -> Prediction:
    """The predicted peak; where the simulation cannot run, the formula's with the reason among its notes."""
    alone = request.model_copy(update={"gpus": 0, "sharding": "auto"})
    found = _of_one(config, alone, method, simulator)
    if request.gpus < 2:
        return found
    parts = of_many(found.allocated, Shape.of_config(config), request, request.gpus)
    note = f"Of one of {request.gpus} GPUs, whose own rows at once are batch_size."
    return _prediction(parts, request, found.method, None, (*found.notes, note))


def _of_one(
    config: Mapping[str, Any], request: MemoryRequest, method: Method, simulator: Simulator | None
) -> Prediction:
    if method == "formula":
        return by_formula(config, request)
    with contextlib.ExitStack() as stack:
        child = simulator or stack.enter_context(Simulator())
        try:
            return child.predict(config, request)
        except UsageError:
            raise
        except TuneError as error:
            return by_formula(config, request, f"{error.what} This is the closed formula's figure.")
