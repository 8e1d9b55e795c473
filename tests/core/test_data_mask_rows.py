"""Rows of more than questions and answers: thoughts, tools, flags, mere text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.chat.answers import find_answers
from ollama_tune.core.data.chat.mask import Cut, cut, make, make_example, make_examples
from ollama_tune.core.data.chat.notes import NOTES, in_order
from ollama_tune.core.data.chat.options import fit_options
from ollama_tune.core.data.chat.pins import options_of
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.chat.samples import samples
from ollama_tune.core.data.values import Example, Message, Row, ToolCall
from ollama_tune.core.errors import TuneError
from tests.core.data_templates import build_folder, chat_format
from tests.core.test_data_mask import custom, trained_texts

WEATHER = json.dumps(
    [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
)
ASK, AGAIN = Message("user", "Is it?"), Message("user", "And now?")
CALL = Message("assistant", "", tool_calls=(ToolCall("weather", '{"city": "Rome", "days": 3}', "c1"),))
RESULT = Message("tool", "sunny", name="weather", tool_call_id="c1")
DONE = Message("assistant", "It is sunny.")


def thought(answer: str, reasoning: str = "hm", **more: Any) -> Message:
    """An answer with thoughts."""
    return Message("assistant", answer, reasoning, **more)


def row(*messages: Message, tools: str = "") -> Row:
    """A row of line 7."""
    return Row(messages, 7, tools)


@pytest.mark.parametrize("family", ["tooled", "interleaved", "channels", "opening", "escaped", "thinking"])
def test_tools_and_thoughts_are_rendered_as_transformers_does(tmp_path: Path, family: str) -> None:
    from transformers import AutoTokenizer

    folder = build_folder(tmp_path, family)
    chat, tokenizer = ChatFormat.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    for messages in ([ASK, CALL, RESULT, DONE], [ASK, thought("yes"), AGAIN, thought("no\n")], [ASK, CALL]):
        turns = [message.as_dict() for message in messages]
        for prompt, tools in ((False, ""), (True, ""), (False, WEATHER)):
            expected = tokenizer.apply_chat_template(
                turns,
                tools=json.loads(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=prompt,
            )
            assert chat.render(messages, prompt, tools) == expected


def test_the_call_of_a_tool_and_the_answer_after_it_are_trained_and_the_result_is_not(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "tooled")
    example = make_example(chat, row(ASK, CALL, RESULT, DONE, tools=WEATHER))
    call = (
        '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call><|im_end|>'
    )
    assert trained_texts(example) == [call, "It is sunny.<|im_end|>"]
    assert "Tools:" in example.text
    assert find_answers(chat, [ASK, CALL], WEATHER).notes == frozenset()


def test_a_call_without_any_text_in_its_arguments_is_trained_to_its_end(tmp_path: Path) -> None:
    bare = Message("assistant", "", tool_calls=(ToolCall("stop", '{"now": true}'),))
    example = make_example(chat_format(tmp_path, "tooled"), row(ASK, bare))
    assert trained_texts(example)[0].endswith('"arguments": {"now": true}}\n</tool_call><|im_end|>')


def test_a_result_inside_the_answer_splits_what_is_trained(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "interleaved")
    example = make_example(chat, row(ASK, CALL, RESULT, DONE))
    assert trained_texts(example) == ["<call>weather city=Rome days=3</call>", "It is sunny.<end_of_turn>"]
    told = Message("assistant", "I look. ", tool_calls=CALL.tool_calls)
    answers = find_answers(chat, [ASK, told, RESULT])
    assert [answers.text[start:end] for start, end in answers.spans] == [
        "<call>weather city=Rome days=3</call>",
        "I look. <end_of_turn>",
    ]
    assert "interleaved" in answers.notes


def test_thoughts_are_trained_in_the_present_answer_and_in_samples_of_their_own(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "tooled")
    sample = row(ASK, thought("yes", "one"), AGAIN, thought("no", "two"))
    found = make(chat, sample)
    assert [trained_texts(example) for example in found.examples] == [
        ["<think>\none\n</think>\n\nyes<|im_end|>"],
        ["<think>\ntwo\n</think>\n\nno<|im_end|>"],
    ]
    assert "one" not in found.examples[1].text and "two" in found.examples[1].text
    assert {"history-rewritten", "drops-thinking:history"} <= found.notes
    assert make_examples(chat, sample) == list(found.examples)


def test_answers_that_keep_their_thoughts_stay_in_one_sample(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "tooled")
    steps = row(ASK, thought("", "first", tool_calls=CALL.tool_calls), RESULT, thought("sunny", "then"))
    (example,) = make_examples(chat, steps)
    assert [text.startswith("<think>\n") for text in trained_texts(example)] == [True, True]
    follow = Row((*steps.messages, AGAIN, thought("no", "last")), 7)
    assert [len(part.messages) for part in samples(chat, follow)] == [4, 6]
    assert [[m.train for m in p.messages if m.role == "assistant"] for p in samples(chat, follow)] == [
        [True, True],
        [False, False, True],
    ]


def test_a_row_without_thoughts_is_one_sample_whatever_the_template_does_to_thoughts(tmp_path: Path) -> None:
    for family in ("tooled", "channels", "chatml"):
        sample = row(ASK, DONE, AGAIN, DONE)
        assert samples(chat_format(tmp_path, family), sample) == [sample]


def test_an_answer_with_its_flag_off_is_context(tmp_path: Path) -> None:
    quiet = Message("assistant", "yes", train=False)
    chat = chat_format(tmp_path, "chatml")
    assert trained_texts(make_example(chat, row(ASK, quiet, AGAIN, DONE))) == ["It is sunny.<|im_end|>"]
    assert trained_texts(make_example(chat, row(ASK, DONE, AGAIN, quiet))) == ["It is sunny.<|im_end|>"]
    with pytest.raises(TuneError, match="None of its answers"):
        make(chat, row(ASK, quiet))


@pytest.mark.parametrize("role", ["text", "assistant"])
def test_mere_text_is_trained_as_a_whole_with_an_end(tmp_path: Path, role: str) -> None:
    for family, begin, end in (("llama3", "<|begin_of_text|>", "<|eot_id|>"), ("chatml", "", "<|im_end|>")):
        made = make(chat_format(tmp_path, family), row(Message(role, "Once upon\na time ")))
        assert made.examples[0].text == f"{begin}Once upon\na time {end}"
        assert trained_texts(made.examples[0]) == [f"Once upon\na time {end}"]
        assert made.notes == {"text-only"}
    with pytest.raises(TuneError, match="no text"):
        make(chat_format(tmp_path, "chatml"), row(Message(role, " \n")))


def test_a_row_that_asks_nothing_has_no_prompt(tmp_path: Path) -> None:
    sample = row(Message("text", "Once"))
    with pytest.raises(TuneError, match="asks nothing"):
        chat_format(tmp_path, "chatml").prompt_ids(sample.prompt)


def test_a_thought_that_the_prompt_opens_is_closed_by_the_model(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "forgetful")
    for answer, said in (
        (DONE, "\n</think>\n\nIt is sunny.</s>"),
        (thought("yes"), "hm\n</think>\n\nyes</s>"),
        (Message("assistant", "<think>\nso\n</think>\n\nyes"), "so\n</think>\n\nyes</s>"),
    ):
        made = make(chat, row(ASK, answer))
        assert trained_texts(made.examples[0]) == [said]
        first = made.examples[0].trained.index(True)
        assert made.examples[0].ids[:first] == chat.prompt_ids([ASK])
        assert "prompt-longer" in made.notes


def test_an_answer_that_never_follows_its_prompt_in_the_history_gets_its_own_sample(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "forgetful")
    examples = make_examples(chat, row(ASK, DONE, AGAIN, Message("assistant", "no")))
    assert [trained_texts(example) for example in examples] == [
        ["\n</think>\n\nIt is sunny.</s>"],
        ["\n</think>\n\nno</s>"],
    ]
    for example, asked in zip(examples, ([ASK], [ASK, DONE, AGAIN]), strict=True):
        assert example.ids[: example.trained.index(True)] == chat.prompt_ids(asked)


def test_options_are_pinned_as_the_rows_need_them(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "opening")
    plain, deep = row(ASK, DONE), row(ASK, thought("yes"))
    quiet = fit_options(chat, [plain] * 3 + [deep])
    assert quiet.options == options_of(quiet.template) == {"enable_thinking": False}
    assert trained_texts(make_example(quiet, plain)) == ["It is sunny.<|im_end|>"]
    assert make(quiet, plain).notes == frozenset()
    assert quiet.render([ASK], True).endswith("<think></think>")
    assert fit_options(chat, [deep] * 30) is chat
    assert trained_texts(make_example(chat, deep)) == ["hm\n</think>\nyes<|im_end|>"]
    assert fit_options(quiet, [deep]) is quiet, "what a person or an older run chose stays"
    assert fit_options(chat_format(tmp_path, "chatml"), [plain]).options == {}


def test_a_prompt_against_thinking_is_told_where_the_row_thinks(tmp_path: Path) -> None:
    quiet = chat_format(tmp_path, "opening").with_options({"enable_thinking": False})
    answers = find_answers(quiet, [ASK, thought("yes")])
    assert "prompt-differs" in answers.notes
    assert not answers.exact


def test_a_text_that_the_template_escapes_is_marked_with_letters(tmp_path: Path) -> None:
    example = make_example(chat_format(tmp_path, "escaped"), row(ASK, Message("assistant", "天気 \n ok")))
    assert [json.loads(f'"{part}"') for part in ("\\u5929\\u6c17 \\n ok",)] == ["天気 \n ok"]
    assert trained_texts(example)[0].endswith('\\u5929\\u6c17 \\n ok"}<|im_end|>')


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    plain = chat_format(tmp_path, "chatml")
    assert find_answers(plain, [ASK, thought("yes")]).notes == {"drops-thinking:last"}
    assert find_answers(plain, [ASK, DONE], WEATHER).notes == {"drops-tools"}
    with pytest.raises(TuneError, match="left out with its calls of tools"):
        make(plain, row(ASK, CALL))
    told = Message("assistant", "I look.", tool_calls=CALL.tool_calls)
    assert "drops-tool-calls" in find_answers(plain, [ASK, told, RESULT, DONE]).notes
    deaf = custom(
        tmp_path / "deaf",
        "{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}</s>{% endif %}{% endfor %}",
    )
    assert "drops-role:tool" in find_answers(deaf, [ASK, told, RESULT, DONE]).notes
    assert (
        "system-merged"
        in find_answers(chat_format(tmp_path, "gemma"), [Message("system", "s"), ASK, DONE]).notes
    )


def test_every_note_has_a_sentence_and_a_place() -> None:
    kinds = frozenset(NOTES)
    assert in_order(kinds) == list(NOTES)
    assert all(text.endswith(".") for text in NOTES.values())
    assert in_order(frozenset({"no-eot", "prompt-longer"})) == ["prompt-longer", "no-eot"]


def test_the_first_difference_is_told_where_no_marks_hold(tmp_path: Path) -> None:
    chat = custom(tmp_path, "{% for m in messages %}{{ m.content | length }}{{ m.content }}</s>{% endfor %}")
    with pytest.raises(TuneError, match=r"At character 0 it prints '6Is it\?"):
        make(chat, row(ASK, DONE))


def test_templates_that_end_an_answer_by_the_next_role_are_heard(tmp_path: Path) -> None:
    folder = build_folder(tmp_path, "next_role_ends")
    (folder / "generation_config.json").unlink()
    chat = ChatFormat.from_folder(folder)
    assert set(chat.stop_texts) == {"<|endoftext|>", "<|user|>"}
    texts = trained_texts(make_example(chat, row(ASK, DONE, AGAIN, DONE)))
    assert texts == ["It is sunny.<|user|>", "It is sunny.<|endoftext|>"]


def test_the_place_of_the_cut_is_told_by_character() -> None:
    offsets = ((0, 2), (2, 5), (5, 6), (6, 9))
    example = Example("aabbbcddd", (1, 2, 3, 4), (False, False, True, True), offsets)
    assert cut(example, 4) is None
    assert cut(example, 3) == Cut(6, 1, 1)
    assert cut(example, 1) == Cut(2, 3, 2)


def test_the_quick_way_finds_what_the_marks_find(tmp_path: Path) -> None:
    texts = ["yes", "  yes\n", "a\n\nb", "<b>x</b>", "<think>hm</think> yes", "</s>", "日本 🦜", "user"]
    for family in ("chatml", "llama3", "mistral", "thinking", "tooled", "gemma"):
        quick, slow = chat_format(tmp_path, family), chat_format(tmp_path / "slow", family)
        make(quick, row(ASK, DONE))
        make(quick, row(ASK, DONE, AGAIN, DONE))
        assert quick.known_forms, family
        for text in texts:
            for messages in (
                [Message("user", text), DONE],
                [ASK, Message("assistant", text)],
                [ASK, DONE, Message("user", text), Message("assistant", text)],
            ):
                slow.known_forms.clear()
                assert find_answers(quick, messages) == find_answers(slow, messages), (family, text)


def test_what_begins_every_conversation_is_encoded_once_and_alike(tmp_path: Path) -> None:
    long = "{{ '<|im_start|>system\n" + "You are careful. " * 20 + "<|im_end|>\n' }}"
    body = "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n{% endfor %}"
    chat = custom(tmp_path, long + body)
    for messages in ([ASK, DONE], [Message("user", "  x"), DONE], [DONE, ASK]):
        text = chat.render(messages)
        assert chat.encode_rendered(text) == chat.encode(text)
    assert len(chat._head[1]) > 20
    assert chat_format(tmp_path, "chatml")._head == ("", (), ())
