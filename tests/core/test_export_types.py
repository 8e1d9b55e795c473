"""The 4- to 6-bit types as whole files: what llama.cpp answers from them, and the importance matrix."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.errors import TuneError
from ollama_tune.core.export import gguf as writer
from ollama_tune.core.export.gguf import export_gguf, open_source
from ollama_tune.core.export.importance import FLOOR, Importance
from ollama_tune.core.export.llama import LlamaServer
from ollama_tune.core.export.mix import FILE_TYPES, choose_types, file_bytes
from ollama_tune.core.export.quantize import encode
from ollama_tune.core.export.reference import divergence
from tests.core.export_parts import PROMPT, build_adapter, build_llama, load, log_probabilities

LONG = PROMPT * 5
# Mean KL divergence in nats on such a model of 256 columns.
DIVERGENCES = {"q6_k": 0.02, "q5_k_m": 0.06, "q4_k_m": 0.15, "q4_k_s": 0.15, "q4_0": 0.2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base whose rows are too short for K types, and an adapter."""
    folder = tmp_path_factory.mktemp("tiny")
    base = build_llama(folder / "base")
    return base, build_adapter(base, folder / "adapter")


def served(path: Path) -> dict[int, float]:
    with LlamaServer(path, 256) as llama:
        return llama.top(LONG, 1000, 70)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base whose rows fill the blocks of K types, and an adapter."""
    folder = tmp_path_factory.mktemp("wide")
    base = build_llama(
        folder / "base", hidden_size=256, intermediate_size=512, head_dim=64, initializer_range=0.06
    )
    return base, build_adapter(base, folder / "adapter", size=0.4)


@pytest.fixture(scope="module")
def matrix(wide: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An importance matrix such as a training leaves it."""
    path = tmp_path_factory.mktemp("matrix") / "importance.safetensors"
    chance = torch.Generator().manual_seed(2)
    shapes = {key: tensor.shape for key, tensor in load_file(wide[0] / "model.safetensors").items()}
    columns = {
        key.removesuffix(".weight"): torch.randn(shape[1], generator=chance).mul(1.5).exp()
        for key, shape in shapes.items()
        if len(shape) == 2 and "embed" not in key
    }
    save_file(columns, path)
    return path


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_llama_cpp_answers_alike_from_4_to_6_bit(
    wide: tuple[Path, Path], matrix: Path, tmp_path: Path, kind: str
) -> None:
    expected = dict(enumerate(log_probabilities(load(*wide), LONG)))
    plain = dict(enumerate(log_probabilities(load(wide[0]), LONG)))
    for importance in (None, matrix):
        exported = export_gguf(*wide, tmp_path / "model.gguf", kind, importance=importance)
        assert divergence(expected, served(exported.path)) < DIVERGENCES[kind]
    assert divergence(expected, plain) > 4 * max(DIVERGENCES.values())


def test_rows_that_fill_no_k_block_still_load(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    exported = export_gguf(*tiny, tmp_path / "model.gguf", "q4_k_m")
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(exported.path).tensors}
    assert kinds == {"F32", "Q5_0", "Q8_0"}
    expected = dict(enumerate(log_probabilities(load(*tiny), LONG)))
    assert divergence(expected, served(exported.path)) < 0.5


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_neither_the_chunks_nor_the_threads_show_in_the_bytes(
    wide: tuple[Path, Path], matrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    first = export_gguf(*wide, tmp_path / "model.gguf", kind, importance=matrix)
    monkeypatch.setattr(writer, "CHUNK", 1 << 13)
    monkeypatch.setattr(writer, "GGML_CHUNK", 1 << 12)
    monkeypatch.setattr(writer, "THREADS", 1)
    assert export_gguf(*wide, tmp_path / "model.gguf", kind, importance=matrix) == first


def test_every_tensor_is_weighed_by_the_importance_of_its_own_inputs(
    wide: tuple[Path, Path], matrix: Path, tmp_path: Path
) -> None:
    exported = export_gguf(wide[0], None, tmp_path / "model.gguf", "q4_k_m", importance=matrix)
    assert exported.importance
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(exported.path).tensors}
    known, weighed = Importance.read(matrix), 0
    with open_source(wide[0], None, ChatFormat.from_folder(wide[0])) as source:
        types = choose_types(source.plans, source.config, "q4_k_m", True)
        for plan in source.plans:
            rows = source.rows.rows(plan, 0, plan.rows)
            columns = known.of(plan)
            found = stored[plan.name].data.tobytes()
            assert found == encode(rows, types[plan.name], columns).tobytes()
            weighed += columns is not None and found != encode(rows, types[plan.name]).tobytes()
    assert weighed == 2 * 7
    fields = {name: field.contents() for name, field in gguf.GGUFReader(exported.path).fields.items()}
    assert fields["quantize.imatrix.entries_count"] == 2 * 7


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_types_that_round_to_the_nearest_ignore_an_importance_matrix(
    tiny: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    exported = export_gguf(*tiny, tmp_path / "model.gguf", kind, importance=tmp_path / "missing")
    assert exported == export_gguf(*tiny, tmp_path / "model.gguf", kind)
    assert not exported.importance


@pytest.mark.parametrize("content", [b"", b"{}", b"\x10" + bytes(7) + b"no safetensors!!"])
def test_a_broken_importance_matrix_is_refused_by_name(
    tiny: tuple[Path, Path], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "importance.safetensors"
    path.write_bytes(content)
    with pytest.raises(TuneError, match=r"importance\.safetensors cannot be used") as raised:
        export_gguf(*tiny, tmp_path / "model.gguf", "q4_0", importance=path)
    assert "export.importance" in raised.value.fix
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "values",
    [torch.full((4,), float("nan")), torch.ones(4, dtype=torch.float16), torch.ones(2, 2), -torch.ones(4)],
)
def test_an_importance_that_is_no_row_of_numbers_is_refused(tmp_path: Path, values: torch.Tensor) -> None:
    save_file({"model.layers.0.mlp.up_proj": values}, tmp_path / "importance.safetensors")
    with pytest.raises(TuneError, match=r"mlp\.up_proj is no row of numbers"):
        Importance.read(tmp_path / "importance.safetensors")


def test_a_column_that_no_row_used_still_counts_a_little(wide: tuple[Path, Path]) -> None:
    """The held-out rows have not seen everything, and a weight of zero would leave a column to chance."""
    with open_source(wide[0], None, ChatFormat.from_folder(wide[0])) as source:
        plan = next(plan for plan in source.plans if plan.name == "blk.0.attn_q.weight")
    values = np.ones(256, dtype=np.float32)
    values[:100] = 0
    found = Importance({plan.module: values}).of(plan)
    assert found is not None
    assert found[0] == pytest.approx(FLOOR * 156 / 256) and found[-1] == 1
    assert Importance({plan.module: np.zeros(256, dtype=np.float32)}).of(plan) is None
    assert Importance({plan.module: np.ones(64, dtype=np.float32)}).of(plan) is None


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_the_size_is_known_before(wide: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    totals: set[int] = set()
    exported = export_gguf(*wide, tmp_path / "model.gguf", kind, lambda done, total: totals.add(total))
    with open_source(*wide, ChatFormat.from_folder(wide[0])) as source:
        size = file_bytes(source.plans, source.config, kind)
    reader = gguf.GGUFReader(exported.path)
    assert totals == {size} == {exported.bytes - reader.data_offset}
    assert reader.fields["general.file_type"].contents() == FILE_TYPES[kind].number
