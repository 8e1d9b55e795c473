from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from ollama_tune.core.data.chat.answers import find_answers
from ollama_tune.core.data.chat.mask import make_example
from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.tokens.lengths import encode_rows, measure
from ollama_tune.core.data.values import Example, Message, Row
from ollama_tune.core.errors import TuneError
from tests.core.data_templates import FAMILIES, build_folder, chat_format


def row(*texts: str, system: str | None = None) -> Row:
    """A conversation of user and assistant in turn."""
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return Row((*([Message("system", system)] if system else []), *turns), 7)


def trained_texts(example: Example) -> list[str]:
    """The runs of trained tokens as text."""
    runs: list[str] = []
    inside, last = False, -1
    for (start, end), trained in zip(example.offsets, example.trained, strict=True):
        if trained and not inside:
            runs.append("")
        if trained:
            runs[-1] += example.text[max(start, last) : end]
            last = max(end, last)
        inside = trained
    return runs


EXPECTED = {
    "chatml": ["yes\n<|im_end|>", " no<|im_end|>"],
    "llama3": ["yes<|eot_id|>", "no<|eot_id|>"],
    "mistral": [" yes</s>", " no</s>"],
    "gemma": ["yes<end_of_turn>", "no<end_of_turn>"],
    "phi3": ["yes\n<|end|>", " no<|end|>"],
    "zephyr": ["yes\n</s>", " no</s>"],
    "thinking": ["yes\n<|im_end|>", "<think>\n\n</think>\n\n no<|im_end|>"],
    "forgetful": ["yes\n</s>", "\n</think>\n\nno</s>"],
    "next_role_ends": ["yes\n<|user|>", " no<|endoftext|>"],
    "plain_words": ["yes\n", " no</s>"],
    "tagged": ["yes\n<|im_end|>", " no<|im_end|>"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_trained_with_its_end_and_nothing_else(tmp_path: Path, family: str) -> None:
    chat = chat_format(tmp_path, family)
    example = make_example(chat, row("Is it?", "yes\n", "And yes?\n", " no"))
    assert trained_texts(example) == EXPECTED[family]
    assert example.line == 7
    assert len(example.ids) == len(example.trained) == len(example.offsets)
    assert chat.decode(example.ids) == example.text


@pytest.mark.parametrize("family", FAMILIES)
def test_the_untrained_beginning_is_the_prompt_of_use(tmp_path: Path, family: str) -> None:
    chat = chat_format(tmp_path, family)
    for answer in ("no", "\n\nno", "  no", "</s>no", "🦜", "<b>no</b>", "[INST]"):
        sample = row("Is it?", answer, system="Be brief.")
        example = make_example(chat, sample)
        prompt = chat.prompt_ids(sample.prompt)
        first = example.trained.index(True)
        assert example.ids[:first] == prompt, answer


def test_agrees_with_a_template_that_marks_its_answers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = build_folder(tmp_path, "tagged")
    sample = row("Is it?", "yes 日本 🦜", "Why?", "no <b>x</b>", system="Be brief.")
    example = make_example(ChatFormat.from_folder(folder), sample)
    reference = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [asdict(message) for message in sample.messages], return_assistant_tokens_mask=True, return_dict=True
    )
    assert list(example.ids) == reference["input_ids"]
    assert [int(trained) for trained in example.trained] == reference["assistant_masks"]


def test_no_text_of_the_user_is_trained_whatever_it_says(tmp_path: Path) -> None:
    nasty = [
        "yes", "yes", "<|im_end|>", "<|im_start|>assistant\nyes", "</s>", "[/INST] yes", "<think>yes</think>",
        "\n\nyes\n\n", "{{ messages }}", "\U000f0000\U000f0001", "\U00100000", "ａｂｃ", "e\u0301", "\u200b",
        "a\u2028b",
    ]  # fmt: skip
    random.seed(3)
    for family in FAMILIES:
        chat = chat_format(tmp_path, family)
        for _ in range(25):
            texts = random.choices(nasty, k=random.choice([2, 4, 6]))
            if any("\U000f0000" in text for text in texts) and any("\U00100000" in text for text in texts):
                continue
            sample = row(*texts)
            answers = find_answers(chat, sample.messages)
            shown = [answers.text[start:end] for start, end in answers.spans]
            for text, span in zip(texts[1::2], shown, strict=True):
                final = (
                    text.split("</think>")[-1].strip()
                    if family in ("forgetful", "thinking")
                    else text.strip()
                )
                assert final in span, (family, texts)
            outside = answers.text
            for start, end in reversed(answers.spans):
                outside = outside[:start] + outside[end:]
            for text in texts[0::2]:
                assert text.strip() in outside, (family, texts)


def test_an_end_token_written_in_an_answer_does_not_end_it(tmp_path: Path) -> None:
    example = make_example(chat_format(tmp_path, "chatml"), row("q", "a<|im_end|>b"))
    assert trained_texts(example) == ["a<|im_end|>b<|im_end|>"]


def test_thoughts_are_trained_where_the_template_keeps_them(tmp_path: Path) -> None:
    thought = "<think>\nhm\n</think>\n\nno"
    sample = row("q", thought, "q2", thought)
    assert trained_texts(make_example(chat_format(tmp_path, "thinking"), sample)) == [
        "no<|im_end|>",
        "<think>\nhm\n</think>\n\nno<|im_end|>",
    ]
    assert trained_texts(make_example(chat_format(tmp_path, "forgetful"), sample)) == [
        "\n\nno</s>",
        "hm\n</think>\n\nno</s>",
    ]


def test_an_answer_that_comes_first_is_trained_too(tmp_path: Path) -> None:
    sample = Row((Message("assistant", "hello"), Message("user", "q"), Message("assistant", "a")), 1)
    assert trained_texts(make_example(chat_format(tmp_path, "chatml"), sample)) == [
        "hello<|im_end|>",
        "a<|im_end|>",
    ]


def custom(folder: Path, template: str) -> ChatFormat:
    build_folder(folder, "mistral")
    (folder / "chat_template.jinja").write_text(template)
    return ChatFormat.from_folder(folder)


BARE = "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + eos_token }}{% endfor %}"


@pytest.mark.parametrize("answer", ["yes", "<b> yes", "  <i><b>\n"])
def test_without_a_generation_prompt_an_answer_starts_with_its_blanks(tmp_path: Path, answer: str) -> None:
    sample = Row((Message("assistant", answer), Message("user", "<u> q <u>"), Message("assistant", "no")), 1)
    example = make_example(custom(tmp_path, BARE), sample)
    assert trained_texts(example) == [f" {answer}</s>", "[assistant] no</s>"]


def test_a_prompt_has_the_tokens_of_use_where_an_answer_cuts_its_end_otherwise(tmp_path: Path) -> None:
    """`ab` is one token but before `c`: none reaches over the edge, and yet those before it are others."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    names = [*"uabqc.x", "ab"]
    numbers = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="x"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"ab(?!c)|[\s\S]"), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = (
        "{% for m in messages %}{{ m.role[0] + 'ab' + m.content + '.' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'aab' }}{% endif %}"
    )
    config = {"chat_template": template, "eos_token": "."}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    chat = ChatFormat.from_folder(tmp_path)
    sample = row("q", "c")
    prompt = chat.prompt_ids(sample.messages[:1])
    example = make_example(chat, sample)
    assert example.ids[: len(prompt)] == prompt and prompt[-1] == names.index("ab")
    assert trained_texts(example) == ["c."]


def test_where_the_prompt_of_use_says_something_else_the_common_header_is_left_out(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + ('Answer: ' if m.role == 'assistant' else '') }}"
        "{{ m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>Think:{% endif %}"
    )
    chat = custom(tmp_path, template)
    assert trained_texts(make_example(chat, row("q", "a"))) == ["Answer: a</s>"]
    assert find_answers(chat, row("q", "a").messages).notes == {"prompt-longer"}


def test_a_prompt_that_begins_the_answer_is_believed_up_to_its_own_words(tmp_path: Path) -> None:
    opening = "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    body = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
    chat = custom(tmp_path, body + opening)
    example = make_example(chat, row("q", "<think>\nhm\n</think>\nno"))
    assert trained_texts(example) == ["hm\n</think>\nno</s>"]
    chat = custom(tmp_path, body + opening.replace("<think>\n", "Sure"))
    assert find_answers(chat, row("q", "Sure thing").messages).notes == {"prompt-differs"}


def test_tags_that_a_template_looks_for_keep_their_place(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.content.startswith('<think>') %}{{ '(thought)' + m.content[7:] }}"
        "{% else %}{{ m.role + ': ' + m.content }}{% endif %}{{ eos_token }}{% endfor %}"
    )
    example = make_example(custom(tmp_path, template), row("q", "<think>x</think>y"))
    assert trained_texts(example) == ["(thought)x</think>y</s>"]


def test_a_token_over_the_end_of_an_answer_is_cut_in_two(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role + ':' + m.content + 'er ' }}{% endfor %}"
    chat = custom(tmp_path, template)
    sample = row("q", "the answ", "q", "no")
    whole = chat.render(sample.messages)
    end = whole.index("answ") + 4
    assert any(start < end < stop for start, stop in chat.encode(whole)[1]), "a token joins both"
    example = make_example(chat, sample)
    assert trained_texts(example) == ["assistant:the answ", "assistant:no</s>"]


def test_a_token_over_the_edge_of_an_answer_is_cut_in_two(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "plain_words")
    sample = row("q", "no", "q", "yes")
    text = chat.render(sample.messages)
    assert any(start < text.index("no\n") < end for start, end in chat.encode(text)[1]), "a token joins both"
    example = make_example(chat, sample)
    assert trained_texts(example) == ["no", "yes</s>"]
    assert chat.decode(example.ids) == example.text


@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize("family", ["mistral", "plain_words", "zephyr", "next_role_ends"])
def test_tokenizers_of_the_sentencepiece_kind_are_masked_too(
    tmp_path: Path, scheme: str, family: str
) -> None:
    chat = _metaspace(tmp_path, family, scheme)
    for answer in ("no", " no", "\nno", "🦜é", "no  \n"):
        example = make_example(chat, row("Is it?", "yes", "q", answer))
        expected = make_example(chat_format(tmp_path, family), row("Is it?", "yes", "q", answer))
        assert trained_texts(example) == trained_texts(expected)


def _metaspace(folder: Path, family: str, scheme: str) -> ChatFormat:
    """A tokenizer that writes blanks as ▁, puts one first, and spells unknown characters in bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    path = build_folder(folder / scheme, family)
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator([f"User: q Assistant: yes no {FAMILIES[family][0]}"] * 4, trainer)
    stored = json.loads(tokenizer.to_str())
    stored["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(stored))
    special = ["<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.save(str(path / "tokenizer.json"))
    stop = [tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|user|>")]
    if family == "next_role_ends":
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}))
    return ChatFormat.from_folder(path)


def test_blanks_that_the_tokenizer_regroups_at_the_edge_stay_as_in_the_prompt(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "llama3")
    sample = row("q", "no")
    prompt = chat.prompt_ids(sample.prompt)
    assert chat.encode(chat.render(sample.messages))[0][: len(prompt)] != prompt
    assert make_example(chat, sample).ids[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", None),
        ("{% for m in messages %}{{ m.content | length }}{% endfor %}", "changes, repeats or leaves out"),
        ("{% for m in messages %}{{ m.content | reverse }}{% endfor %}", None),
        (
            "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
            "changes, repeats or leaves out",
        ),
        ("{% for m in messages %}{{ m.content[:3] }}{% endfor %}", "changes, repeats or leaves out"),
        ("{{ messages[0].content }}", "changes, repeats or leaves out"),
        ("{% for m in messages | reverse %}{{ m.content }}{{ eos_token }}{% endfor %}", None),
    ],
)
def test_a_template_that_hides_the_answer_is_refused(tmp_path: Path, template: str, said: str | None) -> None:
    folder = build_folder(tmp_path, "chatml")
    (folder / "chat_template.jinja").write_text(template)
    chat = ChatFormat.from_folder(folder)
    sample = row("question", "the answer")
    if said is None:
        assert "ANSWER" in "".join(trained_texts(make_example(chat, sample))).upper().replace(
            "REWSNA", "ANSWER"
        )
        return
    with pytest.raises(TuneError, match=said):
        make_example(chat, sample)


def test_a_row_without_answer_is_refused(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "chatml")
    for sample in (row("q"), row("q", "   ")):
        with pytest.raises(TuneError, match="cannot be told"):
            make_example(chat, sample)


def test_texts_of_both_private_planes_are_marked_with_letters(tmp_path: Path) -> None:
    example = make_example(chat_format(tmp_path, "chatml"), row("q\U000f0000", "a\U00100000"))
    assert trained_texts(example) == ["a\U00100000<|im_end|>"]


def test_encode_rows_keeps_order_and_reports_what_it_left_out(tmp_path: Path) -> None:
    chat = chat_format(tmp_path, "mistral")
    bad = Row((Message("user", "q"), Message("user", "q"), Message("assistant", "a")), 2)
    worse = Row((Message("user", "q"), Message("assistant", " ")), 3)
    rows = [row("q", "one"), bad, worse, row("q", "two", system="s"), row("<b>q</s>", "three <i> [x]")]
    calls: list[tuple[int, int]] = []
    examples, problems = encode_rows(chat, rows, lambda *counts: calls.append(counts))
    answers = [trained_texts(example) for example in examples]
    assert answers == [[" one</s>"], [" two</s>"], [" three <i> [x]</s>"]]
    assert calls == [(5, 5)]
    refused, doubtful, *warnings = problems
    assert [(p.kind, p.severity, p.count, p.lines) for p in (refused, doubtful)] == [
        ("refused", "error", 1, (2,)),
        ("refused", "error", 1, (3,)),
    ]
    assert "roles must alternate" in refused.text
    assert "Message 2, an answer, is left out" in doubtful.text
    assert {(p.kind, p.count) for p in warnings} == {("system-merged", 1), ("control-tokens", 1)}


@pytest.mark.parametrize(
    ("family", "note"),
    [("forgetful", "prompt-longer"), ("plain_words", "eot-appended"), ("next_role_ends", "eot-appended")],
)
def test_encode_rows_tells_the_ways_of_the_template(tmp_path: Path, family: str, note: str) -> None:
    _, problems = encode_rows(chat_format(tmp_path, family), [row("q", "a")] * 3)
    assert [(problem.kind, problem.count, problem.severity) for problem in problems] == [(note, 3, "warning")]


def test_progress_is_told_every_few_rows_and_at_the_end(tmp_path: Path) -> None:
    calls: list[int] = []
    encode_rows(chat_format(tmp_path, "chatml"), [row("q", "a")] * 70, lambda done, _: calls.append(done))
    assert calls == [32, 64, 70]


def test_lengths_count_every_row() -> None:
    examples = [
        Example("", (0,) * n, (True,) * (n // 2) + (False,) * (n - n // 2), ((0, 0),) * n)
        for n in range(1, 101)
    ]
    lengths = measure(examples)
    assert (lengths.rows, lengths.tokens, lengths.trained_tokens) == (100, 5050, 2500)
    assert (lengths.median, lengths.percentile_95, lengths.percentile_99, lengths.longest) == (
        50,
        95,
        99,
        100,
    )
    assert measure([]) == type(lengths)(0, 0, 0, 0, 0, 0, 0)
