"""The merged folder, the adapter's folder and the adapter GGUF against transformers, PEFT and llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export import outputs
from ollama_tune.core.export.adapter_gguf import write_adapter_gguf
from ollama_tune.core.export.gguf import export_gguf
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.outputs import copy_adapter, write_merged_folder
from ollama_tune.core.export.values import ExportStopped
from tests.core.export_parts import (
    PROMPT,
    build_adapter,
    build_any_adapter,
    build_family,
    build_llama,
    load,
    load_any,
    log_probabilities,
)
from tests.tiny import CHAT_TEMPLATE

PINNED = "{# pinned #}" + CHAT_TEMPLATE


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter(base, tmp_path_factory.mktemp("adapter"), use_rslora=True)


def chat_of(base: Path) -> ChatFormat:
    return ChatFormat.from_folder(base, template=PINNED)


def difference(one: Any, other: Any) -> float:
    first, second = (torch.tensor(log_probabilities(model, PROMPT)) for model in (one, other))
    return float((first - second).abs().max())


MERGED: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": "all-linear"},
    "weight decomposed": {"use_dora": True},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("changes", MERGED.values(), ids=MERGED.keys())
def test_a_merged_folder_answers_as_base_and_adapter(
    base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM

    folder = build_any_adapter(base, tmp_path / "adapter", **changes)
    exact = in_float32(base, tmp_path / "exact")
    written = write_merged_folder(exact, folder, chat_of(base), tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32)
    assert difference(model.eval(), load_any(base, folder)) < 2e-5
    parted = "modules_to_save" in changes
    assert json.loads((written / "config.json").read_text())["tie_word_embeddings"] != parted


def in_float32(base: Path, folder: Path) -> Path:
    """The same model stored in 32 bit, so that nothing is rounded."""
    load(base).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


def test_a_merged_folder_has_the_number_format_of_its_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    written = write_merged_folder(base, adapter, chat_of(base), tmp_path / "merged")
    ours, theirs = load_file(written / "model.safetensors"), load_file(base / "model.safetensors")
    truth = load_any(base, adapter).merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert values.dtype == theirs[name].dtype == torch.bfloat16
        torch.testing.assert_close(values.float(), truth[name], rtol=2**-8, atol=1e-6)
    norm = "model.norm.weight"
    assert torch.equal(ours[norm], theirs[norm])


def test_shards_and_index_hold_every_tensor(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(
        write_merged_folder(base, adapter, chat_of(base), tmp_path / "one") / "model.safetensors"
    )
    monkeypatch.setattr(outputs, "SHARD", 60_000)
    written = write_merged_folder(base, adapter, chat_of(base), tmp_path / "many")
    index = json.loads((written / "model.safetensors.index.json").read_text())
    files = {name: load_file(written / name) for name in set(index["weight_map"].values())}
    assert len(files) > 2 and index["weight_map"].keys() == whole.keys()
    assert all(torch.equal(files[file][name], whole[name]) for name, file in index["weight_map"].items())
    assert difference(load(written), load(tmp_path / "one")) == 0


def test_a_resized_vocabulary_is_in_the_configuration(base: Path, tmp_path: Path) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", resize=5, store_embedding=True)
    written = write_merged_folder(base, folder, chat_of(base), tmp_path / "merged")
    config = json.loads((written / "config.json").read_text())
    assert config["vocab_size"] == json.loads((base / "config.json").read_text())["vocab_size"] + 5
    assert difference(load(written), load_any(base, folder, resize=5)) < 0.3  # rounded to 16 bit


@pytest.mark.parametrize("family", ["Gemma2", "Phi3", "Qwen3Moe", "Mixtral"])
def test_a_merged_folder_of_any_family_loads(family: str, tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", family)
    exact = in_float32(base, tmp_path / "exact")
    folder = build_any_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    written = write_merged_folder(exact, folder, chat_of(base), tmp_path / "merged")
    assert difference(load(written), load_any(base, folder)) < 2e-5


def test_template_and_tokenizer_go_with_the_folders(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged = write_merged_folder(base, adapter, chat_of(base), tmp_path / "merged")
    copied = copy_adapter(adapter, tmp_path / "copied", base, chat=chat_of(base))
    question = [Message("user", "What is it?")]
    for folder in (merged, copied):
        assert ChatFormat.from_folder(folder).template == PINNED
        assert ChatFormat.from_folder(folder).prompt_ids(question) == chat_of(base).prompt_ids(question)
        assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())


def test_a_copied_adapter_loads_in_peft(base: Path, adapter: Path, tmp_path: Path) -> None:
    copied = copy_adapter(adapter, tmp_path / "copied", base, chat=chat_of(base))
    assert difference(load(base, copied), load(base, adapter)) == 0


PLAIN: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank stabilised": {"use_rslora": True},
    "patterns": {"r": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3, "v_proj": 64}},
}


@pytest.mark.parametrize("changes", PLAIN.values(), ids=PLAIN.keys())
def test_an_adapter_gguf_answers_as_peft(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", target_modules="all-linear", **changes)
    assert adapter_difference(base, folder, tmp_path) < 1e-4


@pytest.mark.parametrize(
    ("family", "limit"), [("Qwen2", 1e-4), ("Phi3", 1e-4), ("Gemma2", 5e-3), ("Mixtral", 1e-4)]
)
def test_an_adapter_gguf_of_a_family_answers_as_peft(family: str, limit: float, tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", family)
    folder = build_any_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    assert adapter_difference(base, folder, tmp_path) < limit


def adapter_difference(base: Path, folder: Path, place: Path, type: str = "f32") -> float:
    """Largest difference of llama.cpp with base + adapter GGUF to PEFT; the adapter must matter."""
    model = export_gguf(base, None, place / "base.gguf", "f32").path
    lora = write_adapter_gguf(base, folder, place / "adapter.gguf", type=type)
    want = torch.tensor(log_probabilities(load_any(base, folder), PROMPT))
    assert float((want - torch.tensor(log_probabilities(load(base), PROMPT))).abs().max()) > 0.1
    with LlamaServer(model, 64, lora=lora) as server:
        found = server.top(PROMPT, len(want), 120)
    return max(abs(value - float(want[token])) for token, value in found.items())


def test_an_adapter_gguf_in_16_bit_is_half_as_large(base: Path, adapter: Path, tmp_path: Path) -> None:
    large = write_adapter_gguf(base, adapter, tmp_path / "large.gguf").stat().st_size
    assert adapter_difference(base, adapter, tmp_path, "f16") < 2e-2
    assert (tmp_path / "adapter.gguf").stat().st_size < 0.7 * large


NOT_PLAIN: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "use_dora"),
    ({"modules_to_save": ["norm"]}, "modules_to_save"),
    ({"target_modules": ["lm_head"]}, "head that the base shares"),
    ({"target_modules": ["embed_tokens"]}, "token embedding"),
    ({"trainable_token_indices": [3]}, "retrained tokens"),
]


@pytest.mark.parametrize(("changes", "named"), NOT_PLAIN, ids=[named for _, named in NOT_PLAIN])
def test_what_an_adapter_gguf_cannot_hold_is_named(
    base: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    folder = build_any_adapter(base, tmp_path / "adapter", **changes)
    with pytest.raises(TuneError, match=named):
        write_adapter_gguf(base, folder, tmp_path / "adapter.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


Write = Callable[..., Path]


def write_merged(base: Path, adapter: Path, output: Path, *rest: Any) -> Path:
    return write_merged_folder(base, adapter, chat_of(base), output, *rest)


def write_copy(base: Path, adapter: Path, output: Path, *rest: Any) -> Path:
    return copy_adapter(adapter, output, base, *rest)


WRITERS = {"merged": write_merged, "copied": write_copy, "gguf": write_adapter_gguf}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_progress_counts_bytes_to_the_end(base: Path, adapter: Path, tmp_path: Path, write: Write) -> None:
    told: list[tuple[int, int]] = []
    write(base, adapter, tmp_path / "out", lambda *figures: told.append(figures))
    assert told[-1][0] == told[-1][1] > 0
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_a_stop_leaves_what_was_there_before(base: Path, adapter: Path, tmp_path: Path, write: Write) -> None:
    written = write(base, adapter, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in [written, *written.glob("*")]}
    asked = iter([False, True])
    with pytest.raises(ExportStopped):
        write(base, adapter, tmp_path / "out", None, lambda: next(asked))
    assert {path.name: path.stat().st_mtime_ns for path in [written, *written.glob("*")]} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_written_again_over_an_older_one(base: Path, adapter: Path, tmp_path: Path) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "stale.txt").write_text("old")
    (tmp_path / ".out.abc.part").mkdir()
    write_merged(base, adapter, old)
    assert not (old / "stale.txt").exists() and (old / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_number_too_large_for_the_format_is_refused(base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    load(base).to(torch.float16).save_pretrained(half)
    folder = build_adapter(base, tmp_path / "adapter", size=1e6)
    with pytest.raises(TuneError, match="too large for F16"):
        write_merged_folder(half, folder, chat_of(base), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
