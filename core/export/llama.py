"""A real llama.cpp in a process of its own, asked over loopback: the judge of an exported file.

A broken file may abort the process that loads it, and llama.cpp prints as it likes; neither may touch ours.
Run as a module this file is the child: `FILE CONTEXT [LORA]` as arguments, the API key as a line on its
standard input. It answers with one JSON line, `{"url"}` or `{"error"}`, and ends when its input closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.values import ExportStopped, Stopped

if TYPE_CHECKING:
    import httpx

START_SECONDS = 60.0
SLOWEST_DISK = 20e6
ANSWER_SECONDS = 1800.0
"""A large model on a slow box needs minutes for a long prompt; a stop does not wait for it."""
LAST_WORDS_SECONDS = 5.0
"""llama.cpp logs from a thread of its own, and why it failed arrives after the failure."""
LOG_TAIL = 4000
SMALL = 200 << 20
"""Bytes of a model below which llama.cpp's threads spend more time on waiting for each other than on work."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Completion:
    """A greedy answer: its token ids, and whether the model ended it with an end-of-generation token."""

    ids: tuple[int, ...]
    ended: bool


class LlamaServer:
    """Loads a GGUF and answers questions about it; a context manager that leaves no process behind.

    Raises `TuneError` when llama.cpp cannot load the file, dies, or does not answer in time.
    """

    def __init__(
        self,
        model: Path,
        context: int,
        stopped: Stopped | None = None,
        *,
        lora: Path | None = None,
    ) -> None:
        self._stopped = stopped
        patience = START_SECONDS + model.stat().st_size / SLOWEST_DISK
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(model.absolute()), str(context)]
            + ([str(lora.absolute())] if lora else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # else a debugger is started on a crash
        )
        try:
            self._client = self._connect(patience)
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._client.close()
        self._kill()

    def tokenize(self, text: str, *, as_prompt: bool = False) -> tuple[int, ...]:
        """Token ids with special tokens read as such; `as_prompt` adds BOS where the file says so."""
        body = {"content": text, "add_special": as_prompt, "parse_special": True}
        return self._post("/tokenize", body, lambda answer: tuple(int(i) for i in answer["tokens"]))

    def render(
        self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any] | None = None
    ) -> str:
        """The chat template of the file applied to messages, with the generation prompt.

        `variables` are passed to the template as a client may pass them (`enable_thinking` and the like).
        """
        body: dict[str, Any] = {"messages": [dict(message) for message in messages]}
        if variables:
            body["chat_template_kwargs"] = dict(variables)
        return self._post("/apply-template", body, lambda answer: str(answer["prompt"]))

    def complete(self, ids: Sequence[int], limit: int, *, forced: int | None = None) -> Completion:
        """The most likely answer to a prompt of token ids, at most `limit` tokens.

        `forced` is a token that is taken at every place whatever its probability: does it end an answer?
        """
        body = {**_GREEDY, "prompt": ids, "n_predict": limit, "return_tokens": True}
        if forced is not None:
            body["logit_bias"] = [[forced, 1e6]]
        return self._post(
            "/completion",
            body,
            lambda answer: Completion(tuple(answer["tokens"]), answer["stop_type"] == "eos"),
        )

    def top(self, ids: Sequence[int], count: int, plain: int) -> dict[int, float]:
        """Natural log-probabilities of the `count` most likely next tokens.

        `plain` is the id of an ordinary token that is forced as the sampled one: llama.cpp reports no
        probabilities with a token that ends the answer. They are taken before sampling, so nothing else
        changes.
        """
        body = {**_GREEDY, "prompt": ids, "n_predict": 1, "n_probs": count, "logit_bias": [[plain, 1e6]]}
        return self._post("/completion", body, _top)

    def _connect(self, patience: float) -> httpx.Client:
        import httpx

        key = secrets.token_hex(16)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), key.encode() + b"\n")
        url = self._read_url(patience)
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=url, headers=headers, timeout=ANSWER_SECONDS, trust_env=False)

    def _read_url(self, patience: float) -> str:
        assert self._process.stdout is not None
        deadline = time.monotonic() + patience
        while True:
            if self._stopped is not None and self._stopped():
                raise ExportStopped
            if select.select([self._process.stdout], [], [], 0.2)[0]:
                break
            if time.monotonic() > deadline:
                raise self._error(f"llama.cpp did not load the file within {patience:.0f} seconds.")
        try:
            answer = json.loads(self._process.stdout.readline())
        except ValueError:
            answer = {}
        if "url" not in answer:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LAST_WORDS_SECONDS)
            raise self._error("llama.cpp cannot load the file.")
        return str(answer["url"])

    def _post(self, path: str, body: Mapping[str, Any], read: Callable[[dict[str, Any]], _T]) -> _T:
        """Ask, and read the answer with `read`; an answer without what it should hold is an error too."""
        import httpx

        from ollama_tune.core.export.wire import patiently

        try:
            response = patiently(lambda: self._client.post(path, json=body), self._stopped)
            response.raise_for_status()
            return read(response.json())
        except (httpx.HTTPError, ValueError, TypeError, LookupError) as error:
            raise self._error(f"llama.cpp gave no usable answer to {path} ({error}).") from error

    def _error(self, what: str) -> TuneError:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(size - LOG_TAIL, 0))
        return TuneError(
            what,
            "Do not use this file; the log of the run says more.",
            details=self._log.read().decode("utf-8", "replace"),
        )

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            stream.close()


def _top(answer: dict[str, Any]) -> dict[int, float]:
    tokens = answer["completion_probabilities"][0]["top_logprobs"]
    return {int(token["id"]): float(token["logprob"]) for token in tokens}


_GREEDY: Mapping[str, Any] = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "cache_prompt": True}


def _serve(model: str, context: int, key: str, lora: Sequence[str]) -> Any:
    """Start the server on a free loopback port; its cache is in 32 bit, so that the file alone is judged."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path) for path in lora]
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [key]
    params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
    params.ui = params.warmup = params.fit_params = params.endpoint_slots = False
    params.check_tensors = params.offline = True
    params.cache_ram_mib = 0
    if Path(model).stat().st_size < SMALL:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def _main() -> None:
    """The child: what llama.cpp prints goes to standard error, the one line of ours to standard output."""
    ours = os.dup(1)
    os.dup2(2, 1)
    key = sys.stdin.readline().strip()
    try:
        server = _serve(sys.argv[1], int(sys.argv[2]), key, sys.argv[3:])
        line = {"url": server.listening_address}
    except Exception as error:
        line = {"error": str(error)}
    os.write(ours, json.dumps(line).encode() + b"\n")
    os.close(ours)
    if "url" in line:
        sys.stdin.read()
        os._exit(0)  # an ordinary end writes the rest of the log, but may wait for a running server


if __name__ == "__main__":
    _main()
