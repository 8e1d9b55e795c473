from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.chat.templates import ChatTemplate
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.probes import CONVERSATIONS
from ollama_tune.core.export.template import (
    LONGEST_KNOWN,
    NEAR,
    TEMPLATE_COMMENT,
    exported_template,
    template_limits,
)
from ollama_tune.core.export.tokenizer import tokenizer_fields
from tests.core.data_templates import FAMILIES, OPTIONED, build_folder, chat_format

DAY = datetime(2001, 2, 3)
ROWS = 512


def talk(*texts: str) -> tuple[Message, ...]:
    """Messages written as `u:text`, with the first letter of user, assistant or system."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return tuple(Message(roles[text[0]], text[2:]) for text in texts)


TALKS: tuple[Sequence[Message], ...] = (
    *CONVERSATIONS,
    talk("u:a", "u:b"),
    talk("u:a", "a:b", "a:c", "u:d"),
    talk("u:a", "a:b", "s:late", "u:d"),
    talk("s:s", "u:a", "a:<think>\nhm\n</think>\n\nb", "u:c", "a:<think></think>d", "u:e"),
    talk("s:", "u:a"),
    talk("s:  s \n", "u:\n\n u\t\n", "a:\r\n a  \n", "u: b "),
    talk("s:\u3000s", "u:\u00a0u\u2028", "a:\u2003a\x85", "u:\x1cb"),
    talk(
        "s:系统 ½", "u:e\u0301 😀\ufeff\u200b.", "a:日\u2028本\x0b.", "u:ſ İ <|im_end|></s> {{ x }} {% raw %}"
    ),
    talk("a:a", "u:b"),
    talk("s:s", "a:b", "u:c"),
)
ARGUMENTS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"enable_thinking": True},
    {"enable_thinking": False, "thinking": False},
    {"date_string": "1 Jan 1999", "datetime": "now", "tools": None, "eos_token": "<other>"},
)


def write_probe(path: Path, chat: ChatFormat) -> Path:
    """A GGUF with one layer of zeros that carries the tokenizer and the template."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, number in (("context_length", 64), ("embedding_length", 32), ("block_count", 1)):
        writer.add_uint32(f"llama.{key}", number)
    for key, number in (("feed_forward_length", 32), ("rope.dimension_count", 32)):
        writer.add_uint32(f"llama.{key}", number)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in tokenizer_fields(chat, ROWS).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}[type(value)](key, value)
    shapes = {
        "token_embd": (ROWS, 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
    }
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for name, shape in (shapes | {f"blk.0.{name}": (32, 32) for name in square}).items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rendered(chat: ChatFormat, messages: Sequence[Message]) -> str | None:
    try:
        return chat.render(messages, add_generation_prompt=True)
    except TuneError:
        return None


def turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize("family", [*FAMILIES, *OPTIONED])
def test_llama_cpp_renders_what_the_training_saw_whatever_a_client_asks_for(
    tmp_path: Path, family: str
) -> None:
    chat = ChatFormat.from_folder(build_folder(tmp_path / family, family), DAY)
    equal = 0
    with LlamaServer(write_probe(tmp_path / "probe.gguf", chat), 64) as llama:
        for messages in TALKS:
            ours = rendered(chat, messages)
            if ours is None:
                with pytest.raises(TuneError, match="no usable answer"):
                    llama.render(turns(messages))
                continue
            for arguments in ARGUMENTS if messages in CONVERSATIONS[:4] else ARGUMENTS[:1]:
                theirs = llama.render(turns(messages), arguments)
                begins = (chat.bos_token or "") if ours.startswith(chat.bos_token or "") else ""
                assert begins + theirs == ours, (messages, arguments)
                equal += 1
    assert equal >= 20


@pytest.mark.parametrize(
    "start", ["", "\n", "\n\n", "  ", " \n", "{%- set x = 1 -%}\n  ", "text\n", "{#- c -#} \n"]
)
def test_nothing_before_the_template_changes_a_character_of_what_it_renders(
    tmp_path: Path, start: str
) -> None:
    folder = build_folder(tmp_path / "model", "chatml")
    (folder / "chat_template.jinja").write_text(start + OPTIONED["switched"][0])
    chat = ChatFormat.from_folder(folder)
    bare = ChatTemplate(start + OPTIONED["switched"][0], {})
    exported = ChatFormat.from_folder(folder, template=exported_template(chat))
    with LlamaServer(write_probe(tmp_path / "probe.gguf", chat), 64) as llama:
        for messages in CONVERSATIONS:
            ours = chat.render(messages, add_generation_prompt=True)
            assert ours == bare.render(turns(messages), True)
            assert exported.render(messages, add_generation_prompt=True) == ours
            assert llama.render(turns(messages)) == ours


def test_no_template_that_ollama_knows_is_near_by_length_alone(tmp_path: Path) -> None:
    for family in ("chatml", "dated"):
        chat = chat_format(tmp_path, family)
        text = exported_template(chat)
        assert text.endswith("\n" + chat.template)
        assert LONGEST_KNOWN + NEAR <= len(text) < 5000
    folder = build_folder(tmp_path / "long", "chatml")
    (folder / "chat_template.jinja").write_text("{{ messages }}" + " " * 5000)
    chat = ChatFormat.from_folder(folder)
    assert exported_template(chat) == TEMPLATE_COMMENT + chat.template


def test_the_text_put_before_a_template_claims_no_abilities(tmp_path: Path) -> None:
    assert len(TEMPLATE_COMMENT) >= 200
    for family in ("chatml", "gemma", "dated"):
        chat = chat_format(tmp_path, family)
        before = exported_template(chat).removesuffix(chat.original)
        words = ["tool_call", "<think>", "</think>", *([] if "tools" in chat.original else ["tools"])]
        assert not any(word in before for word in words)


def test_what_the_template_does_not_do_in_ollama_is_said(tmp_path: Path) -> None:
    limits = {
        family: " ".join(template_limits(chat_format(tmp_path, family))) for family in FAMILIES | OPTIONED
    }
    assert limits["chatml"] == ""
    assert "thinking changes no prompt" in limits["switched"]
    assert "the date; it stays that of the training" in limits["dated"]
    assert "refuses" not in limits["llama3"] + limits["gemma"]
    assert "refuses two questions in a row, an answer before the first question, a system" in limits["typed"]
