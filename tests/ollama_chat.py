"""How an Ollama server answers from a model: options, the prompt by its version, the generated text."""

from __future__ import annotations

from typing import Any

from ollama_tune.core.data.values import Message
from ollama_tune.core.export.gotemplate import collate, run
from tests.ollama_models import OPTIONS, REGISTRY, metadata, prefers_own_template, thinks
from tests.ollama_state import Model, Refusal, Reply, State

WORDS = {int: "integer", list: "array", (int, float): "float32"}


def generate(state: State, name: str, model: Model, body: dict[str, Any]) -> dict[str, Any]:
    """`/api/generate`: unloads, or completes a raw prompt."""
    if body.get("keep_alive") == 0 and not body.get("prompt"):
        state.unload(name)
        state.engine.unload(state.blob(model.digest))
        return {"model": body["model"], "response": "", "done": True, "done_reason": "unload"}
    if body.get("raw") is not True or set(body) & {"template", "system", "context"}:
        raise Refusal(400, "raw mode does not support template, system, or context")
    options = _load(state, name, model, body)
    reply = _complete(state, model, body["prompt"], options)
    return {"model": body["model"], "response": reply.text, **_end(state, reply)}


def chat(state: State, name: str, model: Model, body: dict[str, Any]) -> dict[str, Any]:
    """`/api/chat`: the rendered prompt alone where that is asked for, else the answer."""
    options = _load(state, name, model, body)
    prompt = _prompt(state, model, body["messages"])
    if body.get("_debug_render_only") and state.number >= (0, 11, 5):
        return {"model": body["model"], "_debug_info": {"rendered_template": prompt, "image_count": 0}}
    reply = _complete(state, model, prompt, options)
    if state.answer is not None:
        text, reason = state.answer(state.blob(model.digest), body)
        reply = Reply(text, reason, reply.prompt_tokens)
    message = {"role": "assistant", "content": reply.text}
    if reply.thought:
        message["thinking"] = reply.thought
    return {"model": body["model"], "message": message, **_end(state, reply)}


def _load(state: State, name: str, model: Model, body: dict[str, Any]) -> dict[str, Any]:
    """The options of a request; a stored one of the wrong type breaks every request."""
    if body.get("stream") is not False:
        raise Refusal(400, "the double only answers whole")
    options = model.parameters | body.get("options", {})
    for key, kind in OPTIONS.items():
        if key in options and (isinstance(options[key], bool) or not isinstance(options[key], kind)):
            raise Refusal(400, f'option "{key}" must be of type {WORDS[kind]}')  # type: ignore[index]
    if state.faults.chat_error:
        raise Refusal(500, state.faults.chat_error)
    state.loaded.add(name)
    state.leaving.pop(name, None)
    return options


def _prompt(state: State, model: Model, messages: list[dict[str, str]]) -> str:
    """By a renderer, by the file's own template, by a Go template, or, before 0.30, as bare texts."""
    turns = list(messages)
    if model.system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": model.system})
    gguf = state.blob(model.digest)
    fields = metadata(gguf)
    if model.renderer:
        return "".join(f"<|turn>{t['role']}\n{t['content']}<turn|>\n" for t in turns) + "<|turn>model\n"
    if state.native and (model.template is None or prefers_own_template(fields)):
        thinking = thinks(str(fields.get("tokenizer.chat_template", "")))
        return state.engine.render(gguf, turns, {"enable_thinking": True} if thinking else {})
    if model.template is None:
        return "".join(turn["content"] for turn in turns if turn["role"] != "system")
    known = next((entry for entry in REGISTRY.values() if entry.go == model.template), None)
    if known is not None:
        return known.render(turns)
    return run(model.template, collate([Message(turn["role"], turn["content"]) for turn in turns]))


def _complete(state: State, model: Model, prompt: str, options: dict[str, Any]) -> Reply:
    """As the server does, the literal `<bos>` is taken off a prompt that gets the token anyway."""
    gguf = state.blob(model.digest)
    if metadata(gguf).get("tokenizer.ggml.add_bos_token"):
        prompt = prompt.removeprefix("<bos>")
    limit, context = options.get("num_predict", 128), options.get("num_ctx", 4096)
    return state.engine.answer(gguf, prompt, limit, options.get("stop", []), context)


def _end(state: State, reply: Reply) -> dict[str, Any]:
    counted = {} if state.faults.uncounted else {"prompt_eval_count": reply.prompt_tokens}
    return {"done": True, "done_reason": reply.reason, "eval_count": 4, **counted}
