"""Which difference between a file and the training fails the proof, and which one only warns."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ollama_tune.core.errors import TuneError
from ollama_tune.core.export import textcheck, tokenprobe
from ollama_tune.core.export.meter import Meter
from ollama_tune.core.export.prompts import FEW, Prompt
from ollama_tune.core.export.tensorcheck import check_tensors


@pytest.mark.parametrize(("stored", "planned"), [("ab", "abc"), ("abc", "ab")], ids=["missing", "extra"])
def test_a_tensor_too_few_or_too_many_fails_by_its_name(stored: str, planned: str) -> None:
    source = SimpleNamespace(plans=[SimpleNamespace(name=name) for name in planned])
    there: dict[str, Any] = dict.fromkeys(stored)
    (check,) = check_tensors(there, cast(Any, source), {}, None, lambda: None)
    assert (check.name, check.verdict, check.figure) == ("tensors", "fail", "wrong names")
    assert "file: c. Export again" in check.text


def prompt(kind: str) -> Prompt:
    """A prompt: a `chat` of the person's data or a difficult `text`; `odd` ones have combining marks."""
    return Prompt((), kind, (1,), "chat" in kind, "odd" in kind, False)


class Llama:
    """Reads every text as other tokens, or as those of the training."""

    def __init__(self, wrong: bool) -> None:
        self.ids = (2,) if wrong else (1,)

    def tokenize(self, _text: str) -> tuple[int, ...]:
        return self.ids


TOKENS: Sequence[tuple[list[str], str]] = (
    (["chat"], "fail"),
    (["odd chat", "chat"], "fail"),
    (["text"] * (FEW + 1), "fail"),
    (["text"] * FEW, "warn"),
    (["odd chat"], "warn"),
    (["odd text"] * (FEW + 1), "pass"),
)


@pytest.mark.parametrize(("wrong", "verdict"), TOKENS)
def test_other_tokens_in_a_conversation_or_in_many_texts_fail(wrong: list[str], verdict: str) -> None:
    prompts = [prompt(kind) for kind in wrong]
    check = textcheck.check_tokens(cast(Any, Llama(True)), prompts, None, Meter(0))
    assert (check.verdict, check.data["llama_differs"]) == (verdict, len(wrong)), check
    right = cast(Any, Llama(False))
    assert textcheck.check_tokens(right, prompts, None, Meter(0)).verdict == "pass"
    assert textcheck.check_tokens(right, prompts, lambda _text: (3,), Meter(0)).verdict == "warn"


@pytest.mark.parametrize(
    ("pair", "chat", "bos"),
    [
        ((True, False, True, 1, 1, 1), "pass", "pass"),
        ((False, False, True, 1, 1, 1), "fail", "pass"),
        ((False, True, True, 1, 1, 1), "warn", "pass"),
        ((True, False, False, 1, 1, 1), "warn", "pass"),
        ((True, False, True, 1, 2, 1), "pass", "fail"),
        ((True, False, True, 1, 1, 0), "pass", "fail"),
        ((True, False, True, 2, 2, 2), "pass", "warn"),
    ],
    ids=["same", "other", "odd", "moved by options", "two BOS", "none for plain text", "two in the training"],
)
def test_a_conversation_that_becomes_another_text_fails(pair: Any, chat: str, bos: str) -> None:
    pairs = [textcheck._Pair(True, False, True, pair[3], pair[3], pair[3]), textcheck._Pair(*pair)]
    assert (textcheck._chat(pairs, 0).verdict, textcheck._bos(pairs).verdict) == (chat, bos)


@pytest.mark.parametrize(
    ("wrong", "few", "refused"),
    [
        (["text"] * FEW, FEW, False),
        (["text"] * (FEW + 1), FEW, True),
        (["text"], 0, True),
        (["chat"], FEW, True),
        (["odd chat", "odd text"], 0, False),
    ],
)
def test_a_tokenizer_that_reads_conversations_otherwise_is_refused(
    wrong: list[str], few: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenprobe, "turn_end", lambda _chat: None)
    chat, prompts = cast(Any, None), [prompt(kind) for kind in wrong]
    found = tokenprobe._Finding(tokenprobe._Variant({}, "name"), tuple(prompts), (), ())
    if refused:
        with pytest.raises(TuneError, match=f"{len(wrong)} of 9 prompts become other tokens"):
            tokenprobe._judge(found, 9, chat, few)
        return
    tokenprobe._judge(found, 9, chat, few)
    assert tokenprobe._check(found, chat, prompts).verdict == "warn"
