"""What each check of the proof says of figures at and beyond its limits, the engine left out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message, ToolCall
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export import answercheck, pipeline, structure, tensorcheck, tokenprobe, verify
from ollama_tune.core.export.answercheck import GATES, check_answers, check_bases, check_distribution
from ollama_tune.core.export.header import StoredTensor
from ollama_tune.core.export.llama import Completion
from ollama_tune.core.export.meter import Meter
from ollama_tune.core.export.quantize import TYPES
from ollama_tune.core.export.reference import Position, ReferenceAnswer, divergence, read_reference
from ollama_tune.core.export.textcheck import check_chats
from ollama_tune.core.export.values import Check, ExportStopped, Verdict, worst
from tests.core.data_templates import chat_format

END, PLAIN = 9, 7
CHAT = cast(Any, SimpleNamespace(stop_ids=frozenset({END}), encode=lambda _text: ((PLAIN,), ((0, 1),))))
Odds = Mapping[int, float]
HALF = {1: 0.6, 2: 0.4}


@pytest.fixture(autouse=True)
def _turns_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answercheck, "turn_end", lambda _chat: END)


def logs(odds: Odds) -> dict[int, float]:
    return {token: math.log(share) if share else -math.inf for token, share in odds.items()}


def answer(odds: Odds | None = None, ids: tuple[int, ...] = (), ended: bool = False) -> ReferenceAnswer:
    positions = () if odds is None else (Position(0, logs(odds)),)
    return ReferenceAnswer((1, 2), ids, "", ended, positions)


class Llama:
    """Gives the same odds everywhere; says what follows a prompt, then the end token."""

    def __init__(self, odds: Odds = HALF, says: Mapping[tuple[int, ...], Completion] | None = None) -> None:
        self.odds, self.says, self.heard = logs(odds), dict(says or {}), True

    def top(self, _ids: Sequence[int], _count: int, _plain: int) -> dict[int, float]:
        return self.odds

    def complete(self, ids: Sequence[int], limit: int, *, forced: int | None = None) -> Completion:
        if forced is not None:
            return Completion((forced,), self.heard)
        found = self.says.get(tuple(ids), Completion((END,), True))
        return Completion(found.ids[:limit], found.ended and len(found.ids) <= limit)


GATE = GATES["q8_0"]


def at(kl: float) -> Odds:
    """Odds whose distance from `HALF` is about so many nats, with the same first token."""
    shares = (0.6 + step / 1e5 for step in range(39_999))
    share = next(s for s in shares if 0.6 * math.log(0.6 / s) + 0.4 * math.log(0.4 / (1 - s)) >= kl)
    return {1: share, 2: 1 - share}


@pytest.mark.parametrize(
    ("truth", "found", "slack", "verdict"),
    [
        (HALF, HALF, 0.0, "pass"),
        (HALF, at(GATE.passes * 0.9), 0.0, "pass"),
        (HALF, at(GATE.passes * 1.2), 0.0, "warn"),
        (HALF, at(GATE.fails * 0.9), 0.0, "warn"),
        (HALF, at(GATE.fails * 1.2), 0.0, "fail"),
        (HALF, at(GATE.passes * 1.2), GATE.passes, "pass"),
        (HALF, at(GATE.fails * 1.2), GATE.passes, "warn"),
        (HALF, at(GATE.fails * 1.2), GATE.fails, "pass"),
        ({1: 0.53, 2: 0.47}, {1: 0.47, 2: 0.53}, 0.0, "warn"),
        ({1: 0.51, 2: 0.49}, {1: 0.49, 2: 0.51}, 0.0, "pass"),
        (HALF, {1: math.nan, 2: 0.4}, 0.0, "fail"),
    ],
)
def test_probabilities_are_judged_by_their_gates(
    truth: Odds, found: Odds, slack: float, verdict: Verdict
) -> None:
    llama = cast(Any, Llama(found))
    check = check_distribution(llama, CHAT, [answer(truth)] * 4, GATE, slack, Meter(0))
    assert check.verdict == verdict, check
    assert (check.data["kl_passes_below"], check.data["places"]) == (GATE.passes + slack, 4)


def test_probabilities_that_nobody_knows_are_no_pass() -> None:
    check = check_distribution(cast(Any, Llama(HALF)), CHAT, [answer()], GATE, 0.0, Meter(0))
    assert (check.verdict, check.figure) == ("warn", "not compared")


@pytest.mark.parametrize(("found", "verdict"), [(0.9, "pass"), (1.2, "warn")])
def test_what_4_bit_training_cost_is_told_beyond_its_allowance(found: float, verdict: Verdict) -> None:
    sixteen = answer(at(found * answercheck.NF4_ALLOWANCE))
    assert check_bases([answer(HALF)], [sixteen]).verdict == verdict


@pytest.mark.parametrize(("equal", "verdict"), [(4, "pass"), (2, "pass"), (1, "warn"), (0, "warn")])
def test_half_of_the_answers_may_differ(equal: int, verdict: Verdict) -> None:
    asked = [ReferenceAnswer((number,), (3, 4), "", False, ()) for number in range(4)]
    says = {(number,): Completion((3, 4 if number < equal else 5), False) for number in range(4)}
    check, _ = check_answers(cast(Any, Llama(says=says)), CHAT, asked, 2, Meter(0))
    assert (check.verdict, check.data["equal"]) == (verdict, equal)


def test_an_answer_that_goes_on_is_another_one() -> None:
    says = {(1, 2): Completion((3, 4, 5), False), (1, 2, 3, 4): Completion((5, 6), False)}
    llama, ended = cast(Any, Llama(says=says)), answer(ids=(3, 4), ended=True)
    check, ending = check_answers(llama, CHAT, [ended], 8, Meter(0))
    assert (check.data["equal"], ending.verdict, ending.figure) == (0, "warn", "0 of 1")


@pytest.mark.parametrize(
    ("follows", "heard", "verdict"),
    [
        ([Completion((END,), True)], True, "pass"),
        ([Completion((END,), True), Completion((3, 4), False)], True, "warn"),
        ([Completion((END,), True), Completion((END, 4), False)], True, "fail"),
        ([Completion((END,), True)], False, "fail"),
        ([], True, "skipped"),
        ([], False, "fail"),
    ],
    ids=["ends", "goes on", "end not heard there", "end not heard", "none ended", "none ended, not heard"],
)
def test_an_end_that_ends_nothing_fails(follows: list[Completion], heard: bool, verdict: Verdict) -> None:
    llama, asked = Llama(), []
    llama.heard = heard
    for number, completion in enumerate(follows):
        asked.append(ReferenceAnswer((number,), (3,), "", True, ()))
        llama.says[number, 3] = completion
    *_, ending = check_answers(cast(Any, llama), CHAT, asked, 4, Meter(0))
    assert (ending.name, ending.verdict) == ("ending", verdict)
    assert ending.data["end_token_heard"] is heard


def test_a_divergence_counts_what_only_one_side_knows() -> None:
    sure, other = {1: 0.5, 2: 0.3, 3: 0.1}, {1: 0.5, 2: 0.3, 4: 0.01, 5: 0.01}
    most = 0.1 * math.log(0.1 / 0.01) + 0.1 * math.log(0.1 / 0.19)
    assert divergence(logs(sure), logs(other)) == pytest.approx(most)
    assert divergence(logs({1: 0.2}), logs({1: 0.9})) == pytest.approx(
        0.2 * math.log(0.2 / 0.9) + 0.8 * math.log(0.8 / 0.1)
    )


def measured(excess: float = 0.5, coefficient: float | None = None, spread: float = 0.0) -> Any:
    return tensorcheck._Measured("w", excess / 100, excess, coefficient, spread)


@pytest.mark.parametrize(
    ("excess", "verdict"), [(1.0, "pass"), (1.01, "fail"), (math.inf, "fail"), (math.nan, "fail")]
)
def test_a_tensor_with_more_than_the_types_rounding_fails(excess: float, verdict: Verdict) -> None:
    check = tensorcheck._rows_check([measured(), measured(excess)])
    assert (check.verdict, check.data["wrong"]) == (verdict, int(verdict == "fail"))
    json.dumps(check.data, allow_nan=False)


WITH, WITHOUT = (
    SimpleNamespace(rows=SimpleNamespace(adapter=1)),
    SimpleNamespace(rows=SimpleNamespace(adapter=None)),
)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ([measured(coefficient=1.09)], "pass"),
        ([measured(coefficient=1.11)], "fail"),
        ([measured(coefficient=0.89)], "fail"),
        ([measured(coefficient=1.3, spread=0.1)], "pass"),
        ([measured(coefficient=1.45, spread=0.1)], "fail"),
        ([measured(coefficient=1.0), measured(coefficient=0.0)], "fail"),
        ([measured(coefficient=math.nan)], "fail"),
        ([measured(coefficient=1.0, spread=0.5)], "skipped"),
        ([measured(coefficient=0.0, spread=0.5)] * 100, "fail"),
        ([measured(coefficient=1.0, spread=0.5)] * 100, "pass"),
        ([measured(coefficient=0.0, spread=math.nan)], "skipped"),
        ([measured()], "skipped"),
    ],
)
def test_the_adapter_is_in_the_file_once_and_whole(found: list[Any], verdict: Verdict) -> None:
    check = tensorcheck._adapter_check(found, cast(Any, WITH))
    assert (check.name, check.verdict) == ("adapter", verdict), check
    json.dumps(check.data, allow_nan=False)
    assert tensorcheck._adapter_check(found, cast(Any, WITHOUT)).verdict == "skipped"


@pytest.mark.parametrize(
    ("kind", "shape", "good"),
    [("f16", (4, 32), True), ("f32", (4, 32), False), ("f16", (8, 16), False), ("f16", (32, 4), False)],
)
def test_a_tensor_of_another_type_or_shape_fails(
    tmp_path: Path, kind: str, shape: tuple[int, ...], good: bool
) -> None:
    import torch

    rows = torch.ones(4, 32)
    (tmp_path / "t").write_bytes(rows.numpy().astype(np.float16).tobytes() * 2)
    stored = StoredTensor(tmp_path / "t", TYPES[kind].ggml, shape, 0)
    plan = SimpleNamespace(name="w", shape=(4, 32), rows=4)
    source = SimpleNamespace(plans=[plan], rows=SimpleNamespace(adapter=None, rows=lambda *_: rows))
    source.rows.adapted = lambda _plan: False
    found = tensorcheck.check_tensors(
        {"w": stored}, cast(Any, source), {"w": TYPES["f16"]}, None, lambda: None
    )
    assert found[0].verdict == ("pass" if good else "fail")


def test_answers_of_another_adapter_are_none(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    prompt = {"prompt_ids": [1], "answer_ids": [2, 3], "text": "", "positions": []}
    for digest in ({}, {"adapter_sha256": "a"}):
        path.write_text(json.dumps({"prompts": [prompt], **digest}))
        assert len(read_reference(path, 3, "a")) == len(read_reference(path, 3)) == 1
        assert len(read_reference(path, 3, "b")) == (not digest)
    assert [read_reference(path, limit)[0].ended for limit in (2, 3)] == [False, True]


@pytest.mark.parametrize("verdicts", product(("pass", "warn", "fail", "skipped"), repeat=2))
def test_the_verdict_is_that_of_the_worst_check(verdicts: tuple[Verdict, Verdict]) -> None:
    found = worst(tuple(Check("x", verdict, "", "") for verdict in verdicts))
    order = ("fail", "warn", "pass", "skipped")
    assert found == min(verdicts, key=order.index).replace("skipped", "pass")


@pytest.mark.parametrize(
    ("distances", "verdict"),
    [([0.0], "pass"), ([structure.LARGEST], "fail"), ([math.nan], "fail"), (OSError("odd"), "skipped")],
)
def test_a_build_that_cannot_be_compared_is_skipped_and_another_one_fails(
    distances: Any, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*_: object) -> list[float]:
        if isinstance(distances, Exception):
            raise distances
        return list(distances)

    monkeypatch.setattr(structure, "_build", lambda *_: [])
    monkeypatch.setattr(structure, "_distances", found)
    assert structure.check_structure(Path(), None, CHAT, lambda: False).verdict == verdict
    distances = ExportStopped()
    with pytest.raises(ExportStopped):
        structure.check_structure(Path(), None, CHAT, lambda: False)


class Engine:
    """Renders and reads as the training did, but for what a test changes."""

    def __init__(self, chat: ChatFormat, **changes: Any) -> None:
        self.chat, self.bos, self.changes = chat, changes.pop("bos", 1), changes

    def render(self, turns: Sequence[Mapping[str, str]], variables: Mapping[str, Any] | None = None) -> str:
        if "refuses" in self.changes:
            raise TuneError("It refuses.", "Ask otherwise.")
        text = self.chat.render([Message(**turn) for turn in turns], True)
        text = text.removeprefix(self.chat.bos_token or "") + self.changes.get("text", "")
        return text + (self.changes.get("option", "") if variables else "")

    def tokenize(self, text: str, *, as_prompt: bool = False) -> tuple[int, ...]:
        ids = (*self.chat.encode(text)[0], *self.changes.get("ids", ()))
        return (*self.chat.encode(self.chat.bos_token or "")[0] * self.bos, *ids) if as_prompt else ids


QUESTION = (Message("user", "Is it yes?"),)
TOOLS = (*QUESTION, Message("assistant", "", tool_calls=(ToolCall("f", "{}"),)), Message("tool", "12"))


@pytest.mark.parametrize(
    ("changes", "chat", "bos"),
    [
        ({}, "pass", "pass"),
        ({"text": "x"}, "fail", "pass"),
        ({"ids": (5,)}, "fail", "pass"),
        ({"refuses": True}, "fail", "pass"),
        ({"option": "x"}, "warn", "pass"),
        ({"bos": 0}, "fail", "fail"),
        ({"bos": 2}, "fail", "fail"),
    ],
    ids=["right", "another text", "other tokens", "refused", "moved by options", "no BOS", "two BOS"],
)
def test_a_prompt_that_is_not_the_trainings_fails(
    tmp_path: Path, changes: dict[str, Any], chat: Verdict, bos: Verdict
) -> None:
    engine = Engine(chat_format(tmp_path, "llama3"), **changes)
    found = check_chats(cast(Any, engine), engine.chat, [QUESTION, TOOLS], Meter(0))
    assert [check.verdict for check in found] == [chat, bos], found
    assert (found[0].data["conversations"], found[0].data["left_out"]) == (1, 1)
    assert "1 with tools or thoughts were left out" in found[0].text


def told(*_: object, **__: object) -> None:
    """An event that nobody reads."""


@pytest.mark.parametrize("way", ["cheap", "dear", "fails"])
def test_a_reference_of_4_bit_weights_is_made_again_or_given_room(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*_: object) -> tuple[ReferenceAnswer, ...]:
        if way == "fails":
            raise TuneError("PEFT cannot.", "Wait.")
        return (answer(at(0.01)),)

    monkeypatch.setattr(verify, "is_cheap", lambda _base: way != "dear")
    monkeypatch.setattr(verify, "recompute", again)
    order = cast(Any, SimpleNamespace(base=Path(), adapter=Path(), chat=CHAT))
    stored = pipeline._Known((answer(HALF),), "stored by the training", 8, "digest")
    known = pipeline._on_sixteen_bits(order, stored, told, lambda: False)
    (check,) = known.checks
    if way == "cheap":
        assert (known.answers, known.slack, check.verdict) == (again(), 0.0, "pass")
        return
    assert (known.answers, known.slack, check.verdict) == (
        stored.answers,
        answercheck.NF4_ALLOWANCE,
        "skipped",
    )
    assert ("PEFT cannot;" in check.text) == (way == "fails")


@pytest.mark.parametrize(("window", "trained", "told"), [(0, 9, False), (8, 8, False), (8, 9, True)])
def test_rows_beyond_a_window_that_llama_cpp_ignores_are_told(
    window: int, trained: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "read_config", lambda _base: SimpleNamespace(window=window))
    training = SimpleNamespace(sequence_length=trained)
    order = cast(Any, SimpleNamespace(base=Path(), settings=SimpleNamespace(training=training)))
    assert [check.verdict for check in pipeline._window(order)] == ["warn"] * told


@pytest.mark.parametrize(
    ("unrendered", "deaf", "end", "words"),
    [
        (1, (), 5, "renders 1 conversations differently"),
        (0, (5,), 5, "does not stop at <5>"),
        (0, (5,), None, "does not stop at <5>"),
        (0, (6,), 5, ""),
        (0, (), 5, ""),
    ],
)
def test_a_file_that_would_never_stop_or_sees_other_prompts_is_refused(
    unrendered: int, deaf: tuple[int, ...], end: int | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenprobe, "turn_end", lambda _chat: end)
    chat = cast(Any, SimpleNamespace(decode=lambda ids: f"<{ids[0]}>"))
    prompt = tokenprobe.Prompt((), "text", (1,), True, False, False)
    found = tokenprobe._Finding(tokenprobe._Variant({}, "x"), (), (prompt,) * unrendered, deaf)
    if words:
        with pytest.raises(TuneError, match=words):
            tokenprobe._judge(found, 9, chat, 3)
        return
    tokenprobe._judge(found, 9, chat, 3)
    check = tokenprobe._check(found, chat, [prompt])
    assert (check.verdict, check.data["endless"]) == ("warn" if deaf else "pass", list(deaf))
