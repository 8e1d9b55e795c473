"""Rows with tools and thoughts pass through the proof of an export: left out and counted, never a crash."""

from __future__ import annotations

from pathlib import Path

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message, ToolCall
from ollama_tune.core.evaluate.chat import message_of
from ollama_tune.core.export.gguf import export_gguf
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.meter import Meter
from ollama_tune.core.export.order import Order
from ollama_tune.core.export.prompts import is_plain, prompts_of
from ollama_tune.core.export.questions import read_questions
from ollama_tune.core.export.textcheck import check_chats
from ollama_tune.core.plan.settings import ExportSettings, Settings
from ollama_tune.core.runs.folder import RunFolder
from tests.core.export_parts import build_llama

ASK = Message("user", "What is the colour of the sky?")
CALL = Message("assistant", "", tool_calls=(ToolCall("look", '{"up": true}', "c1"),))
RESULT = Message("tool", "blue", name="look", tool_call_id="c1")
PLAIN = (ASK, Message("assistant", "Blue."), ASK)
OTHERS = ((ASK, CALL, RESULT), (ASK, Message("assistant", "Blue.", reasoning="I see."), ASK))


def test_conversations_with_tools_or_thoughts_are_left_out_and_counted(tmp_path: Path) -> None:
    base = build_llama(tmp_path / "base")
    chat = ChatFormat.from_folder(base)
    assert [is_plain(messages) for messages in (PLAIN, *OTHERS)] == [True, False, False]
    assert all(chat.render(messages, True) for messages in OTHERS), "the training renders them"
    compared = [prompt.messages for prompt in prompts_of(chat, (*OTHERS, PLAIN))]
    assert PLAIN in compared and not any(messages in compared for messages in OTHERS)
    order = Order(RunFolder(tmp_path), Settings(), ExportSettings(), "n", "n", base, chat)
    assert [len(question.turns) for question in read_questions(order, (*OTHERS, PLAIN), None)] == [3]
    exported = export_gguf(base, None, tmp_path / "model.gguf", "f32")
    with LlamaServer(exported.path, 64) as llama:
        found = check_chats(llama, chat, (*OTHERS, PLAIN), Meter(3))[0]
    assert (found.verdict, found.figure, found.data["left_out"]) == ("pass", "1 of 1", 2)
    assert "2 with tools or thoughts were left out" in found.text


def test_a_turn_without_a_text_is_an_empty_one_for_the_model_that_is_tried() -> None:
    assert message_of({"role": "assistant", "content": None}) == Message("assistant", "")
    assert message_of({"role": "assistant", "content": "a", "reasoning_content": "t"}) == Message(
        "assistant", "a", "t"
    )
