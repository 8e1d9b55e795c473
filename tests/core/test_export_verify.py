from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.export.adapter_config import LoraConfig
from ollama_tune.core.export.answercheck import check_answers
from ollama_tune.core.export.gguf import Exported, export_gguf
from ollama_tune.core.export.header import read_header
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.meter import Meter
from ollama_tune.core.export.mix import FILE_TYPES
from ollama_tune.core.export.probes import CONVERSATIONS
from ollama_tune.core.export.quantize import TYPES
from ollama_tune.core.export.reference import ReferenceAnswer, divergence, read_reference
from ollama_tune.core.export.values import Check, ExportStopped, Verification
from ollama_tune.core.export.verify import compute_reference, verify
from ollama_tune.core.models import architectures
from tests.core.export_parts import LLAMA3_ROPE, build_adapter, build_any_adapter, build_llama

LIMIT = 16
HELD_OUT = [(Message("user", f"What is the colour of bird {i}?"),) for i in range(3)]


class Case:
    """A base, an adapter, and what transformers says of both together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = build_llama(folder / "base", rope_parameters=LLAMA3_ROPE)
        self.adapter = build_adapter(self.base, folder / "adapter", use_rslora=True)
        chat = ChatFormat.from_folder(self.base)
        self.reference = compute_reference(
            self.base, self.adapter, chat, (*CONVERSATIONS[:4], *HELD_OUT), LIMIT
        )

    def verify(self, exported: Exported, **changes: Any) -> Verification:
        arguments = {"conversations": HELD_OUT, "max_new_tokens": LIMIT} | changes
        return verify(exported, self.base, self.adapter, self.reference, **arguments)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("verify"))


def verdicts(verification: Verification) -> dict[str, str]:
    return {check.name: check.verdict for check in verification.checks}


@pytest.mark.parametrize("kind", [kind.name for kind in FILE_TYPES.values() if not kind.mixed])
def test_a_good_file_passes_every_check(case: Case, tmp_path: Path, kind: str) -> None:
    exported = export_gguf(case.base, case.adapter, tmp_path / "model.gguf", kind)
    seen: list[tuple[int, int]] = []
    found = case.verify(exported, progress=lambda done, total: seen.append((done, total)))
    passed = verdicts(found)
    # Random weights leave the greedy answers of a coarse type to chance.
    assert passed.pop("answers") in ("pass", "warn")
    assert passed.pop("ending") in ("pass", "warn", "skipped")
    names = ("metadata", "tensors", "adapter", "tokens", "chat", "BOS", "probabilities")
    assert passed == dict.fromkeys(names, "pass")
    assert found.verdict != "fail"
    assert (found.file, found.sha256, found.bytes) == ("model.gguf", exported.sha256, exported.bytes)
    assert seen[-1][0] == seen[-1][1]


def test_an_exact_file_gives_the_same_answers(case: Case, tmp_path: Path) -> None:
    found = case.verify(export_gguf(case.base, case.adapter, tmp_path / "model.gguf", "f32"))
    (answers,) = [check for check in found.checks if check.name == "answers"]
    assert answers.figure == f"{len(case.reference)} of {len(case.reference)} equal"
    assert found.verdict == "pass"


ADAPTERS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "more tokens": {"resize": 3, "store_embedding": True},
    "patterns": {"rank_pattern": {"layers.1.mlp.down_proj": 8}, "alpha_pattern": {"q_proj": 16}},
}


@pytest.mark.parametrize("changes", ADAPTERS.values(), ids=ADAPTERS)
def test_every_kind_of_adapter_is_weighed_and_its_absence_caught(
    case: Case, tmp_path: Path, changes: dict[str, Any]
) -> None:
    adapter = build_any_adapter(case.base, tmp_path / "adapter", **changes)
    chat = ChatFormat.from_folder(case.base)
    reference = compute_reference(case.base, adapter, chat, CONVERSATIONS[:2], LIMIT)
    path = tmp_path / "model.gguf"
    for kind in ("f16", "q4_k_m"):
        exported = export_gguf(case.base, adapter, path, kind)
        found = verdicts(verify(exported, case.base, adapter, reference, max_new_tokens=LIMIT))
        assert found["tensors"] == found["adapter"] == found["metadata"] == "pass"
        assert kind == "q4_k_m" or found["probabilities"] == "pass"
    if "resize" not in changes:
        forgotten = export_gguf(case.base, None, path, "q4_k_m")
        found = verdicts(verify(forgotten, case.base, adapter, reference, max_new_tokens=LIMIT))
        assert found["tensors"] == found.get("adapter", "fail") == "fail"


def test_a_forgotten_adapter_is_caught(case: Case, tmp_path: Path) -> None:
    found = case.verify(export_gguf(case.base, None, tmp_path / "model.gguf", "q8_0"))
    assert {name for name, verdict in verdicts(found).items() if verdict == "fail"} >= {
        "tensors",
        "adapter",
        "probabilities",
    }
    (adapter,) = [check for check in found.checks if check.name == "adapter"]
    low, _, high = adapter.figure.split()
    assert abs(float(low)) < 0.05 and abs(float(high)) < 0.05


def test_a_wrong_scale_is_caught(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank-stabilised LoRA scaled as the plain one: half of it, at rank 4."""
    right = LoraConfig.scale
    with monkeypatch.context() as patch:
        patch.setattr(LoraConfig, "scale", lambda self, module, rank: right(self, module, rank) / 2)
        exported = export_gguf(case.base, case.adapter, tmp_path / "model.gguf", "f16")
    found = case.verify(exported)
    assert verdicts(found)["adapter"] == verdicts(found)["probabilities"] == "fail"
    (adapter,) = [check for check in found.checks if check.name == "adapter"]
    assert adapter.figure == "0.500 to 0.500"


def test_a_missing_permutation_is_caught_by_the_probabilities(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row check shares the converter's idea of the order, so llama.cpp must notice."""
    monkeypatch.setitem(
        architectures.ARCHITECTURES,  # type: ignore[arg-type]
        "LlamaForCausalLM",
        replace(architectures.ARCHITECTURES["LlamaForCausalLM"], permuted=()),
    )
    found = verdicts(case.verify(export_gguf(case.base, case.adapter, tmp_path / "model.gguf", "f16")))
    assert found["tensors"] == "pass"
    assert found["probabilities"] == "fail"


@pytest.mark.parametrize("change", ["base", "factors"])
def test_a_wrong_rope_is_caught(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with monkeypatch.context() as patch:
        if change == "base":
            right = architectures.Config.fields
            patch.setattr(
                architectures.Config,
                "fields",
                lambda self, rows: right(self, rows) | {"llama.rope.freq_base": 10000.0},
            )
        else:
            patch.setattr(architectures.Config, "rope_factors", lambda self: {})
        exported = export_gguf(case.base, case.adapter, tmp_path / "model.gguf", "f16")
    found = verdicts(case.verify(exported))
    assert found["probabilities"] == "fail"
    assert found["tensors"] == ("pass" if change == "base" else "fail")


def changed(exported: Exported, change: Any) -> Exported:
    data = bytearray(exported.path.read_bytes())
    change(data)
    exported.path.write_bytes(data)
    return exported


def test_two_swapped_tensors_are_caught(case: Case, tmp_path: Path) -> None:
    exported = export_gguf(case.base, case.adapter, tmp_path / "model.gguf", "q8_0")
    stored = read_header(exported.path).tensors
    first, second = (stored[f"blk.{i}.attn_v.weight"].start for i in (0, 1))
    size = TYPES["q8_0"].size(*stored["blk.0.attn_v.weight"].shape)

    def swap(data: bytearray) -> None:
        one, two = data[first : first + size], data[second : second + size]
        data[first : first + size], data[second : second + size] = two, one

    found = case.verify(changed(exported, swap))
    (tensors,) = [check for check in found.checks if check.name == "tensors"]
    assert tensors.verdict == "fail"
    assert tensors.figure.startswith("19 of 21")


def test_another_tokenizer_rule_is_caught(case: Case, tmp_path: Path) -> None:
    exported = export_gguf(case.base, case.adapter, tmp_path / "model.gguf", "f16")
    found = verdicts(case.verify(changed(exported, lambda data: replace_text(data, b"gpt-2", b"tekken"[:5]))))
    assert found.get("tokens", found.get("llama.cpp")) == "fail"


def replace_text(data: bytearray, old: bytes, new: bytes) -> None:
    place = data.index(old)
    data[place : place + len(old)] = new


def test_another_template_is_caught(case: Case, tmp_path: Path) -> None:
    exported = export_gguf(case.base, case.adapter, tmp_path / "model.gguf", "f16")
    assistant = b"{% if add_generation_prompt %}<|im_start|>assistant"
    other = b"{% if add_generation_prompt %}<|im_start|>assistAnt"
    found = case.verify(changed(exported, lambda data: replace_text(data, assistant, other)))
    assert verdicts(found)["chat"] == "fail"


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_file_that_is_none_fails_and_does_not_crash(case: Case, tmp_path: Path, damage: str) -> None:
    exported = export_gguf(case.base, case.adapter, tmp_path / "model.gguf", "f16")
    data = exported.path.read_bytes()
    content = {"cut": data[: len(data) // 2], "empty": b"", "text": b"not a GGUF " * 99}[damage]
    exported.path.write_bytes(content)
    found = case.verify(exported)
    whole_header = {"metadata": "pass"} if damage == "cut" else {}
    assert verdicts(found) == whole_header | {"tensors": "fail", "llama.cpp": "fail"}
    assert found.verdict == "fail"


def test_an_end_token_that_ends_nothing_is_caught(case: Case, tmp_path: Path) -> None:
    """The answer ends with an id that the file calls an ordinary token."""
    token = case.reference[0].answer_ids[0]
    chat = ChatFormat.from_folder(case.base)
    assert token not in chat.stop_ids
    chat.stop_ids = chat.stop_ids | {token}
    exported = export_gguf(case.base, case.adapter, tmp_path / "model.gguf", "f32")
    ended = replace(case.reference[0], answer_ids=(), ended=True)
    with LlamaServer(exported.path, 256) as llama:
        checks = check_answers(llama, chat, [ended], LIMIT, Meter(1))
    assert [check.verdict for check in checks if check.name == "ending"] == ["fail"]


def test_a_stop_ends_the_proof(case: Case, tmp_path: Path) -> None:
    exported = export_gguf(case.base, case.adapter, tmp_path / "model.gguf", "f16")
    with pytest.raises(ExportStopped):
        case.verify(exported, stopped=lambda: True)


def test_a_reference_made_on_other_weights_can_be_given_slack(case: Case, tmp_path: Path) -> None:
    exported = export_gguf(case.base, case.adapter, tmp_path / "model.gguf", "f16")
    strange = [
        replace(answer, positions=tuple(replace(p, logprobs=_flatter(p.logprobs)) for p in answer.positions))
        for answer in case.reference
    ]
    found = [
        verdicts(verify(exported, case.base, case.adapter, strange, slack=slack, max_new_tokens=LIMIT))[
            "probabilities"
        ]
        for slack in (0.0, 10.0)
    ]
    assert found == ["fail", "pass"]


def _flatter(logprobs: Any) -> dict[int, float]:
    flat = {i: value * 0.5 for i, value in logprobs.items()}
    total = math.log(sum(map(math.exp, flat.values())) * 1.01)
    return {i: value - total for i, value in flat.items()}


def test_the_stored_reference_is_read_and_a_broken_one_is_none(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    stored = [
        {
            "prompt_ids": list(answer.prompt_ids),
            "answer_ids": list(answer.answer_ids),
            "text": answer.text,
            "positions": [
                {"index": p.index, "ids": list(p.logprobs), "logprobs": list(p.logprobs.values())}
                for p in answer.positions
            ],
        }
        for answer in case.reference
    ]
    path.write_text(json.dumps({"prompts": stored}))
    assert read_reference(path, LIMIT) == case.reference
    for broken in ('{"prompts": [{}]}', "[]", "{", '{"prompts": 3}'):
        path.write_text(broken)
        assert read_reference(path, LIMIT) == ()
    assert read_reference(tmp_path / "missing.json", LIMIT) == ()


def test_the_reference_covers_answers_and_places(case: Case) -> None:
    assert len(case.reference) == 7
    for answer in case.reference:
        assert isinstance(answer, ReferenceAnswer)
        assert answer.ended == (len(answer.answer_ids) < LIMIT)
        assert all(len(position.logprobs) == 64 for position in answer.positions)
        for place, token in enumerate(answer.answer_ids):
            for position in answer.positions:
                if position.index == place:
                    assert max(position.logprobs, key=position.logprobs.__getitem__) == token


def test_divergence_is_the_textbook_value_and_zero_for_equals() -> None:
    half, third = math.log(0.5), math.log(0.25)
    reference, found = {1: half, 2: third, 3: third}, {1: third, 2: half, 3: third}
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert divergence(reference, found) == pytest.approx(expected, abs=1e-6)
    assert divergence(reference, reference) == 0.0
    # A token that only one side lists belongs to the rest of both.
    assert divergence({1: half, 2: third}, {1: half, 3: third}) == pytest.approx(0.0, abs=1e-6)


def test_sure_answers_that_the_other_side_does_not_even_list_are_far_apart() -> None:
    sure = {1: math.log(0.9), 2: math.log(0.09)}
    other = {token: math.log(0.007) for token in range(10, 138)}
    assert divergence(sure, other) > 3
    assert divergence(sure, {3: math.log(0.999)}) > 3


def test_a_verification_survives_its_file() -> None:
    checks = (Check("tensors", "pass", "1 of 1", "Fine."),)
    value = Verification(
        "pass", checks, "a.gguf", "0" * 64, 9, "f16", "name", {"gguf": "x"}, ("ollama run x",)
    )
    assert Verification.from_dict(json.loads(json.dumps(value.to_dict()))) == value
