"""How an Ollama server turns a GGUF file and a request into a model, by its version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.ollama_state import DIGEST, Model, Refusal, State, Turns

ZERO = f"sha256:{0:064d}"
FORCED = {
    "gemma4": ("gemma4", "gemma4"),
    "laguna": ("laguna", "laguna"),
    "nemotron_h": ("nemotron-3-nano", "nemotron-3-nano"),
}
"""Families whose prompts the server renders by code of its own."""
DEFAULT_TEMPLATE = "{{ .Prompt }}"
CREATE_FIELDS = {"model", "files", "parameters", "stream", "system", "template", "license", "requires"}
OPTIONS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("num_ctx", "num_predict", "seed", "top_k", "num_keep", "repeat_last_n"), int),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repeat_penalty"), (int, float)),
    "stop": list,
}
"""Options that the server knows; a wrong type breaks every request."""
TYPES = dict(
    zip(
        (0, 1, 2, 7, 14, 15, 17, 18, 32),
        ("F32", "F16", "Q4_0", "Q8_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "BF16"),
        strict=True,
    )
)


@dataclass(frozen=True)
class Known:
    """An entry of the server's registry: a Jinja template it knows, and what it puts in its place."""

    jinja: str
    go: str
    stop: tuple[str, ...]
    render: Callable[[Turns], str]


def _chatml(turns: Turns) -> str:
    """As the real one: texts of the same role are joined, system texts come first."""
    system = "\n\n".join(t["content"] for t in turns if t["role"] == "system")
    text = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    for turn in turns:
        if turn["role"] != "system":
            text += f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n"
    return f"{text}<|im_start|>assistant\n"


def _instruct(turns: Turns) -> str:
    """One line break more than the Jinja text has, as in a published case."""
    text = "".join(f"<start_of_turn>{t['role']}\n{t['content']}<end_of_turn>\n" for t in turns)
    return f"{text}<start_of_turn>model\n\n"


REGISTRY = {
    "chatml": Known(
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n",
        ("<|im_start|>", "<|im_end|>"),
        _chatml,
    ),
    "gemma-instruct": Known(
        "{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{{ message['content'] }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "{{ range .Messages }}<start_of_turn>{{ .Role }}\n{{ .Content }}<end_of_turn>\n{{ end }}"
        "<start_of_turn>model\n\n",
        ("<start_of_turn>", "<end_of_turn>"),
        _instruct,
    ),
}
"""Stand-ins under well-known names; the texts are this test's own."""


def distance(one: str, other: str, limit: int = 100) -> int:
    """Levenshtein's distance, or `limit` where it is that or more."""
    if abs(len(one) - len(other)) >= limit:
        return limit
    before = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i] + [limit] * len(other)
        for j in range(max(1, i - limit), min(len(other), i + limit) + 1):
            row[j] = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != other[j - 1]))
        before = row
    return min(before[-1], limit)


@lru_cache(maxsize=64)
def nearest(template: str) -> str | None:
    """The registry entry fewer than 100 edits away."""
    found = sorted((distance(template, known.jinja), name) for name, known in REGISTRY.items())
    return found[0][1] if found[0][0] < 100 else None


@lru_cache(maxsize=16)
def metadata(path: Path) -> dict[str, Any]:
    """The fields of a GGUF file; a `Refusal` where it is none. A blob never changes."""
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Refusal(400, "supplied file was not in GGUF format")
    try:
        fields = GGUFReader(path).fields
    except Exception as error:
        raise Refusal(400, "invalid file magic") from error
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


def made_of(state: State, body: dict[str, Any], digest: str) -> tuple[Model, list[str]]:
    """The model that a checked request makes, and what the server says of it besides."""
    fields = metadata(state.blob(digest))
    parameters = dict(body.get("parameters") or {})
    said = []
    template = body.get("template")
    hit = nearest(str(fields.get("tokenizer.chat_template", "")))
    if hit is not None:
        said.append(f"using autodetected template {hit}")
        template = template or REGISTRY[hit].go
        parameters = {"stop": list(REGISTRY[hit].stop)} | parameters
    family = str(fields.get("general.architecture", ""))
    renderer, parser = FORCED.get(family, ("", "")) if state.native else ("", "")
    if family == "gemma4":
        parameters.setdefault("stop", ["<turn|>"])
    parameters |= state.faults.more_parameters
    for name in state.faults.lost_parameters:
        parameters.pop(name, None)
    model = Model(
        digest=rewritten(state, digest) if state.rewrites else digest,
        files=dict(body["files"]),
        parameters=parameters,
        template=template,
        system=body.get("system") or "" if state.faults.other_system is None else state.faults.other_system,
        renderer=renderer,
        parser=parser,
        requires=body.get("requires") or "",
        family=family,
        quantization=TYPES.get(int(fields.get("general.file_type", -1)), "unknown"),
    )
    return model, said


def rewritten(state: State, digest: str) -> str:
    """A copy with other bytes, as llama-quantize leaves one: twice the room, and another digest."""
    content = state.blob(digest).read_bytes() + bytes(32)
    state.take_room(len(content))
    other = f"sha256:{hashlib.sha256(content).hexdigest()}"
    state.blob(other).write_bytes(content)
    return other


def check_request(state: State, body: dict[str, Any]) -> None:
    """What a server refuses before it answers with a stream, and what a careful client never sends."""
    if state.number < (0, 5, 5):
        raise Refusal(400, "path or Modelfile are required")
    if body.get("adapters"):
        words = "LoRA adapters are no longer supported" if state.current else "the double takes none"
        raise Refusal(400, words)
    files, parameters = body.get("files"), body.get("parameters") or {}
    if not files:
        raise Refusal(400, "neither 'from' or 'files' was specified")
    if body.get("quantize") and state.current:
        raise Refusal(400, "create-time quantization is only supported for safetensors imports")
    if "typical_p" in parameters and state.current:
        raise Refusal(400, "typical_p is no longer supported")
    if set(body) - CREATE_FIELDS or set(parameters) - set(OPTIONS):
        strange = sorted((set(body) - CREATE_FIELDS) | (set(parameters) - set(OPTIONS)))
        raise Refusal(400, f"a careful client does not send {strange}")
    if body.get("template", "").count("{{") != body.get("template", "").count("}}"):
        raise Refusal(400, "template error: unclosed action")
    for name, digest in files.items():
        _check_file(state, name, digest)
    if len(files) != 1:
        raise Refusal(400, "mixed model file types")


def _check_file(state: State, name: str, digest: str) -> None:
    bad = not name or any(part in ("", ".", "..") for part in name.split("/"))
    if bad or (state.current and ("\\" in name or ":" in name)):
        raise Refusal(400, "invalid file name")
    if not DIGEST.fullmatch(digest):
        raise Refusal(400, "invalid digest format")
    if not state.blob(digest).exists():
        raise Refusal(400, f"blob {digest} not found")
    if name.endswith(".safetensors"):
        raise Refusal(400, "unsupported MLX architecture")


def creation_lines(state: State, name: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The stream of a create; failures from here on are lines, because it has begun with 200."""
    faults = state.faults
    yield {"status": "parsing GGUF"}
    if faults.create_silence:
        state.speak.wait(faults.create_silence)
    if faults.create_error is not None:
        yield {"error": faults.create_error}
        return
    try:
        model, said = made_of(state, body, next(iter(body["files"].values())))
    except Refusal as refusal:
        yield {"error": str(refusal), "status": refusal.status}
        return
    yield from _making(state, model, said)
    if not faults.create_without_success:
        state.models[name] = model
        yield {"status": "success"}


def _making(state: State, model: Model, said: Sequence[str]) -> Iterator[dict[str, Any]]:
    if state.rewrites:
        for done in (0, 50, 100, 120):
            yield {"status": "validating GGUF model", "digest": ZERO, "total": 100, "completed": done}
    for words in said:
        yield {"status": words}
    yield {"status": "a status of tomorrow \x85 \u2028 with separators"}
    yield {"status": f"using existing layer {model.digest}"}
    yield {"status": "writing manifest"}


def shown(state: State, name: str, model: Model) -> dict[str, Any]:
    """The answer of `/api/show`."""
    return {
        "modelfile": f"# Modelfile generated by Ollama\n# FROM {name}\n\nFROM {state.blob(model.digest)}\n",
        "parameters": "\n".join(_parameter_lines(model.parameters)),
        "template": model.template or DEFAULT_TEMPLATE,
        "details": details(model),
        "model_info": {"general.architecture": model.family},
        "capabilities": ["completion"],
    } | {
        key: value
        for key, value in (
            ("system", model.system),
            ("renderer", model.renderer),
            ("parser", model.parser),
            ("requires", model.requires),
        )
        if value
    }


def details(model: Model) -> dict[str, Any]:
    return {"format": "gguf", "family": model.family, "quantization_level": model.quantization}


def _parameter_lines(parameters: dict[str, Any]) -> Iterator[str]:
    """As Go prints them: name, blanks, and the value with Go's quotes; every number is a float."""
    for name, value in parameters.items():
        for one in value if isinstance(value, list) else [value]:
            yield f"{name:<30} {json.dumps(one) if isinstance(one, str) else _go_number(one)}"


def _go_number(value: float) -> str:
    """Go's %#v of a float64: without a fraction where there is none, with an exponent from a million on."""
    if abs(value) < 1e6:
        return str(int(value)) if value == int(value) else repr(value)
    mantissa, exponent = f"{value:.15e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"


def prefers_own_template(fields: dict[str, Any]) -> bool:
    """The file's template can do more than the Go one: it speaks of tools or of thinking."""
    text = str(fields.get("tokenizer.chat_template", ""))
    return "tools" in text or "tool_call" in text or thinks(text)


def thinks(template: str) -> bool:
    return "<think>" in template and "</think>" in template
