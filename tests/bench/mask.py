"""Holds the loss mask against a folder of chat templates: `python -m tests.bench.mask FOLDER [--name WORD]`.

For each `*.jinja` twelve conversations are rendered and masked. `exact` counts those whose every answer
begins right after the very prompt of use, `heuristic` those where the header before it was searched,
`refused` those that the mask sets aside, `unrenderable` those that the template itself refuses. Wrong is what
a check that knows nothing of the mask finds: a rendering unlike transformers', words of an answer that are
not trained, words of a question that are, or a `{% generation %}` span
of which more is not trained than what the prompt of use ends with.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ollama_tune.core.data.chat.answers import Answers, find_answers
from ollama_tune.core.data.chat.mask import make, make_example
from ollama_tune.core.data.chat.options import fit_options
from ollama_tune.core.data.chat.render import END_TOKENS, ChatFormat
from ollama_tune.core.data.chat.samples import samples
from ollama_tune.core.data.chat.templates import BLANKS
from ollama_tune.core.data.values import Message, Row, ToolCall
from ollama_tune.core.errors import TuneError

NOW = datetime(2026, 1, 2)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Its name."}},
                "required": ["city"],
            },
        },
    }
]
ASK, SAY = "qsky asks qsea", "aone says atwo"
"""Words of questions begin with q, those of answers with a, results of tools with r, thoughts with t."""


def _user(text: str = ASK) -> Message:
    return Message("user", text)


def _answer(text: str = SAY, **more: Any) -> Message:
    return Message("assistant", text, **more)


_CALL = _answer("", tool_calls=(ToolCall("weather", '{"city": "aparis"}', "callid001"),))
_RESULT = Message("tool", "rsunny rwarm", name="weather", tool_call_id="callid001")
CONVERSATIONS: dict[str, tuple[Message, ...]] = {
    "single": (_user(), _answer()),
    "multi": (_user(), _answer(), _user("qsecond"), _answer("athree"), _user("qthird"), _answer("afour")),
    "system": (Message("system", "sbrief"), _user(), _answer()),
    "blanks": (_user(f"  {ASK}\n"), _answer(f"\n {SAY} \n\n")),
    "repeated": (_user("same"), _answer("same"), _user("same"), _answer("same")),
    "scripts": (_user("q天気は？"), _answer("a晴れ。 🦜 é")),
    "markup": (_user("q<b>{{ x }}</b> {% if %}"), _answer("a<i>{{ y }}</i> & [z](u)")),
    "control": (_user("q<|im_end|></s>[INST]"), _answer("a</s><|im_end|> [/INST] b")),
    "think": (_user(), _answer(f"<think>\ntdeep\n</think>\n\n{SAY}")),
    "reasoning": (
        _user(),
        _answer(reasoning="tdeep"),
        _user("qsecond"),
        _answer("athree", reasoning="tlast"),
    ),
    "tools": (_user(), _CALL),
    "result": (_user(), _CALL, _RESULT, _answer()),
}
WITH_TOOLS = ("tools", "result")
_SPECIAL = re.compile(
    r"<[|｜][^<>\s]{1,40}[|｜]>|</?[a-z_]{1,24}(?:[a-z_]|\|)>|\[/?[A-Z_]{2,24}\]|<[|/]?[a-z_]+\|?>"
)
_PLAIN_TAGS = re.compile(
    r"</?(think|tools?|tool_calls?|tool_response|function|parameter|name|args?|arg_\w+)>"
)


@dataclass
class Report:
    """What became of a template's conversations; `wrong` and `refused` hold reasons by conversation."""

    name: str
    ways: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    heuristic: dict[str, str] = field(default_factory=dict)
    milliseconds: float = 0.0
    generation: int = 0


def chat_of(source: str, folder: Path) -> ChatFormat:
    """The template with a small tokenizer that knows the control tokens it prints."""
    from tokenizers import AddedToken

    tokenizer = _tokenizer()
    found = sorted({text for text in _SPECIAL.findall(source) if not _PLAIN_TAGS.fullmatch(text)})
    ends = [text for text in END_TOKENS if text in source and text not in ("</s>", "<|tool_response>")]
    eos = ends[0] if ends else "</s>"
    special = [AddedToken(text, normalized=False) for text in ("<s>", "</s>", *found)]
    tokenizer.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": eos, "chat_template": source}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ChatFormat.from_folder(folder, NOW)


def _tokenizer() -> Any:
    """A byte-level BPE of about a thousand tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    texts = [message.content for talk in CONVERSATIONS.values() for message in talk]
    tokenizer.train_from_iterator([*texts, json.dumps(TOOLS), str(__doc__)] * 2, trainer)
    return tokenizer


def judge(path: Path, folder: Path) -> Report:
    """All conversations on one template."""
    report, source = Report(path.stem), path.read_text()
    try:
        chat = chat_of(source, folder)
    except TuneError as error:
        report.ways["template refused"] = len(CONVERSATIONS)
        report.refused["template"] = error.what
        return report
    for name, messages in CONVERSATIONS.items():
        _judge(report, chat, source, name, messages)
    if report.ways["unrenderable"] < len(CONVERSATIONS):
        report.milliseconds = _speed(chat)
    return report


def _judge(report: Report, chat: ChatFormat, source: str, name: str, messages: Sequence[Message]) -> None:
    tools = json.dumps(TOOLS) if name in WITH_TOOLS else ""
    try:
        text = chat.render(messages, tools=tools)
    except TuneError:
        report.ways["unrenderable"] += 1
        return
    wrong = list(_unlike_transformers(chat, source, messages, tools, text))
    row = Row(tuple(messages), 1, tools)
    try:
        chat = fit_options(chat, [row])
        parts = samples(chat, row)
        found = [find_answers(chat, part.messages, part.tools) for part in parts]
        make(chat, row)
    except TuneError as error:
        report.ways["refused"] += 1
        report.refused[name] = error.what
        return
    way = "exact" if all(answers.exact for answers in found) else "heuristic"
    report.ways[way] += 1
    if way == "heuristic":
        report.heuristic[name] = ", ".join(sorted({note for answers in found for note in answers.notes}))
    report.notes.update({note for answers in found for note in answers.notes})
    report.notes.update(f"{name}={value}" for name, value in chat.options.items())
    for part, answers in zip(parts, found, strict=True):
        wrong += _misplaced(name, part.messages, answers)
    if "endgeneration" in source and len(parts) == 1:
        wrong += _outside_generation(report, chat, source, messages, tools, found[0])
    if wrong:
        report.wrong[name] = "; ".join(wrong)


def _special(chat: ChatFormat) -> dict[str, Any]:
    return {"bos_token": chat.bos_token, "eos_token": chat.eos_token}


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [message.as_dict() for message in messages]


def _unlike_transformers(
    chat: ChatFormat, source: str, messages: Sequence[Message], tools: str, text: str
) -> Iterator[str]:
    """Transformers cuts more kinds of blanks than llama.cpp; these conversations have none of them."""
    from transformers.utils.chat_template_utils import render_jinja_template

    assert not any(c.isspace() and c not in BLANKS for m in messages for c in m.content)
    if (chat.merges_system and any(message.role == "system" for message in messages)) or "strftime" in source:
        return
    for prompt in (False, True):
        ours = chat.render(messages, True, tools) if prompt else text
        try:
            theirs = render_jinja_template(
                [_turns(messages)],
                chat_template=source,
                tools=json.loads(tools) if tools else None,
                add_generation_prompt=prompt,
                **_special(chat),
            )[0][0]
        except Exception as error:
            yield f"transformers does not render it ({type(error).__name__})"
            continue
        if ours != theirs:
            yield "rendered otherwise by transformers"


def _words(text: str, letter: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text) if word.startswith(letter)}


def _misplaced(name: str, messages: Sequence[Message], answers: Answers) -> Iterator[str]:
    """Words of answers that are not trained, and words of others that are."""
    if name == "repeated":
        if sum(answers.text[a:b].count("same") for a, b in answers.spans) != len(answers.spans):
            yield "not every answer is trained alone"
        return
    inside = " ".join(answers.text[a:b] for a, b in answers.spans)
    outside, at = "", 0
    for start, end in answers.spans:
        outside += answers.text[at:start] + " "
        at = end
    outside += answers.text[at:]
    learned = [m for m in messages if m.role == "assistant" and m.train]
    texts = " ".join(f"{m.content} {[c.arguments for c in m.tool_calls]}" for m in learned)
    missing = {word for word in _words(texts, "a") if len(word) > 1 and word in answers.text} - _words(
        inside, "a"
    )
    if missing:
        yield f"not trained: {sorted(missing)}"
    strange = _words(inside, "q") | {w for w in _words(inside, "r") if w in ("rsunny", "rwarm")}
    strange |= {word for word in _words(inside, "s") if word == "sbrief"}
    if strange:
        yield f"trained though others': {sorted(strange)}"
    if "athree" in outside and all(m.train for m in messages):
        yield "an answer stands outside"


def _outside_generation(
    report: Report, chat: ChatFormat, source: str, messages: Sequence[Message], tools: str, answers: Answers
) -> Iterator[str]:
    """Each stretch that the template itself marks as the model's must be trained by us."""
    from transformers.utils.chat_template_utils import render_jinja_template

    if chat.merges_system and any(message.role == "system" for message in messages):
        return
    try:
        rendered, indices = render_jinja_template(
            [_turns(messages)],
            chat_template=source,
            tools=json.loads(tools) if tools else None,
            return_assistant_tokens_mask=True,
            **_special(chat),
            **chat.options,
        )
    except Exception:
        return
    report.generation += 1
    answers_at = [i for i, message in enumerate(messages) if message.role == "assistant"]
    prompts = [chat.render(messages[:i], True, tools) for i in answers_at]
    mine = [answers.text[a:b] for a, b in answers.spans]
    for start, end in indices[0]:
        theirs = rendered[0][start:end].strip()
        if theirs and not any(_covers(own, prompt, theirs) for own in mine for prompt in prompts):
            yield f"generation span not trained: {theirs[:60]!r}"


def _covers(own: str, prompt: str, theirs: str) -> bool:
    """Whether all of `theirs` is trained but a beginning that the end of the prompt of use holds."""
    given = next((n for n in range(len(theirs), -1, -1) if theirs[:n] in prompt[-n - 40 :]), 0)
    return any(theirs[n:].strip() in own for n in {0, given, len(theirs[:given].rstrip())})


def _speed(chat: ChatFormat) -> float:
    """Milliseconds of CPU of the median single-turn row, of the text to the token ids."""
    words = "The quick answer to a question of some length, as people write them. "
    times = []
    for number in range(60):
        sample = Row((_user(f"{words * 3}{number}?"), _answer(f"{words * 5}{number}.")), number)
        start = time.thread_time()
        try:
            make_example(chat, sample)
        except TuneError:
            return 0.0
        times.append(1000 * (time.thread_time() - start))
    return statistics.median(times)


def main() -> int:
    """Print a line a template and the totals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", default="", help="only templates whose name holds this")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(sorted(given.folder.glob("*.jinja"))):
            if given.name in path.stem:
                reports.append(judge(path, Path(folder) / str(number)))
                _show(reports[-1], given.verbose)
    _totals(reports)
    return 1 if any(report.wrong for report in reports) else 0


def _show(report: Report, verbose: bool) -> None:
    ways = ", ".join(f"{count} {way}" for way, count in report.ways.items())
    print(f"{report.name:52.52} {report.milliseconds:5.2f} ms  {ways}", flush=True)
    for kind, reasons in (
        ("WRONG", report.wrong),
        ("refused", report.refused),
        ("heuristic", report.heuristic),
    ):
        for name, reason in reasons.items():
            print(f"    {kind} {name}: {reason[:400]}")
    if verbose and report.notes:
        print("    " + ", ".join(f"{note} {count}" for note, count in report.notes.items()))


def _totals(reports: Sequence[Report]) -> None:
    ways: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for report in reports:
        ways.update(report.ways)
        notes.update(report.notes.keys())
    speeds = sorted(report.milliseconds for report in reports if report.milliseconds)
    print(f"\n{len(reports)} templates x {len(CONVERSATIONS)} conversations: {dict(ways)}")
    print(f"templates with a wrong row: {sum(bool(report.wrong) for report in reports)}")
    tagged = [report for report in reports if report.generation]
    print(f"{{% generation %}} compared: {sum(r.generation for r in tagged)} rows of {len(tagged)} templates")
    print(f"notes, by templates: {dict(notes.most_common())}")
    if speeds:
        slow = sum(speed > 1 for speed in speeds)
        median = statistics.median(speeds)
        print(f"a row: median {median:.2f} ms of CPU, slowest {speeds[-1]:.2f}; over 1 ms: {slow}")


if __name__ == "__main__":
    sys.exit(main())
