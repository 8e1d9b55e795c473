"""How the rows of a step are dealt to ranks, and what a process knows of the others."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import threading
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.plan.paths import choose_path
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.plan.sharding import FLAT_BUFFER
from ollama_tune.core.plan.values import MemoryPart
from ollama_tune.core.train import flat, group, sharded
from ollama_tune.core.train.batches import lay
from ollama_tune.core.train.dealing import deal
from ollama_tune.core.train.flat import buckets
from ollama_tune.core.train.group import Group
from ollama_tune.core.train.importance import LayerInputs
from ollama_tune.core.train.leader import Leader
from ollama_tune.core.train.probe import Budget
from ollama_tune.core.train.recipe import _arranged
from ollama_tune.core.train.session import Session, StopWish
from ollama_tune.core.train.world import Alone, Lost, World
from tests.core.train_parts import make_run


def window_of(seed: int, rows: int, batch: int) -> tuple[list[list[int]], list[int]]:
    chance = random.Random(seed)
    lengths = [chance.randrange(3, 60) for _ in range(rows)]
    order = list(range(rows))
    chance.shuffle(order)
    return [order[start : start + batch] for start in range(0, rows, batch)], lengths


@pytest.mark.parametrize(
    ("rows", "batch", "ranks"), [(16, 4, 2), (7, 1, 3), (2, 2, 4), (1, 1, 2), (33, 8, 4)]
)
def test_every_row_is_dealt_once_in_the_windows_order_and_in_parts_as_small(
    rows: int, batch: int, ranks: int
) -> None:
    window, lengths = window_of(1, rows, batch)
    shares = deal(window, lengths, ranks)
    order = list(chain(*window))
    dealt = [list(chain(*share)) for share in shares]
    assert sorted(chain(*dealt)) == sorted(order) and len(shares) == ranks
    assert all(part == sorted(part, key=order.index) for part in dealt)
    assert all(1 <= len(each) <= batch for share in shares for each in share)
    assert max(map(len, dealt)) == -(-rows // ranks) and dealt[0]


def test_ranks_get_about_as_many_tokens() -> None:
    for seed in range(20):
        window, lengths = window_of(seed, 32, 4)
        loads = [sum(lengths[row] for row in chain(*share)) for share in deal(window, lengths, 4)]
        assert max(loads) - min(loads) <= max(lengths) / 2


def test_no_rank_gets_more_rows_than_its_share_beside_one_long_row() -> None:
    shares = deal([[0, 1, 2, 3], [4, 5, 6, 7]], [100, *[1] * 7], 2)
    assert [sum(map(len, share)) for share in shares] == [4, 4]


def test_packed_rows_take_no_more_sequences_at_once_than_before() -> None:
    window, lengths = window_of(3, 40, 10)
    before = max(len(lay([lengths[row] for row in batch], 64)) for batch in window)
    shares = deal(window, lengths, 2, capacity=64)
    assert sorted(chain(*chain(*shares))) == list(range(40))
    parts = [[lengths[row] for row in batch] for share in shares for batch in share]
    assert max(len(lay(part, 64)) for part in parts) <= before


def test_what_the_loss_is_divided_by_may_be_known_only_once_all_ranks_have_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of pairs: a window of four has twelve supervised tokens, and its loss is divided by four."""
    factors: list[float] = []
    group = SimpleNamespace(lockstep=False, order=lambda _do: None)
    group.add_gradients = lambda _weights, factor: factors.append(factor)
    leader = Leader.__new__(Leader)
    leader.ranks, leader.group, leader.weights = 2, cast(Group, group), []
    leader._training, leader.path = TrainingSettings(), cast(Any, SimpleNamespace(device="cpu"))
    leader.examples = cast(Any, SimpleNamespace(counts=[5] * 4, supervised=[3] * 4))
    batch = SimpleNamespace(supervised_tokens=1)
    monkeypatch.setattr(leader, "order", lambda *_, **_about: None)
    monkeypatch.setattr(leader, "begin", lambda share, step: [batch for rows in share for _ in rows])
    monkeypatch.setattr(leader, "backward", lambda batches, about, *_: 8.0 / about)
    monkeypatch.setattr(leader, "_all", lambda own: (own(), [({"sum": [4.0 / 12, 2]}, b"")]))
    assert leader.gradients([[0, 1], [2, 3]], 0, lambda loss: loss) == pytest.approx((8.0 + 4.0) / 4)
    assert factors == [pytest.approx(12 / 4)]


def test_a_process_alone_has_no_world_and_one_of_several_has_keys_of_its_own() -> None:
    assert World.of({}) is None
    assert World.of({"RANK": "0", "WORLD_SIZE": "1"}) is None
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29400"}
    world = World.of(told)
    assert world is not None and (world.rank, world.size, world.local_rank) == (3, 4, 1)
    assert (world.address, world.port, world.agent) == ("node0", 29400, False)
    again = World.of({**told, "TORCHELASTIC_RESTART_COUNT": "1"})
    assert again is not None and again.prefix != world.prefix


@pytest.mark.parametrize(
    ("seen", "local", "chosen"),
    [
        (None, 2, "2"),
        ("4,7", 1, "7"),
        ("GPU-a,GPU-b", 0, "GPU-a"),
        ("5", 3, "5"),
        ("4,7", 2, ""),
        ("", 0, ""),
    ],
    ids=["all", "some", "names", "given by the launcher", "too few", "none"],
)
def test_each_process_sees_its_own_gpu_only(
    seen: str | None, local: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": "4"}
    monkeypatch.setattr(os, "environ", told | ({} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}))
    world = World.of(os.environ)
    assert world is not None
    world.take_place()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == chosen
    assert os.environ["LOCAL_RANK"] == "0", "torch's init_device_mesh takes this GPU"
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    again = World.of(os.environ)
    assert again is not None and again.local_rank == local, "in the fresh process that follows this one"
    again.take_place()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == chosen


def test_weights_travel_in_buffers_of_one_type_that_are_not_too_large() -> None:
    weights = [torch.zeros(count * FLAT_BUFFER // 16) for count in (1, 3, 32)]
    weights += [torch.zeros(5, dtype=torch.bfloat16), torch.zeros(7)]
    parts = list(buckets(weights))
    assert [id(weight) for part in parts for weight in part] == [id(weight) for weight in weights]
    assert [len(part) for part in parts] == [2, 1, 1, 1]


def test_what_two_processes_saw_of_a_layer_is_what_one_would_have_seen() -> None:
    rows = torch.randn(30, 4)
    whole, first, second = LayerInputs(), LayerInputs(), LayerInputs()
    whole.observe("a", rows)
    first.observe("a", rows[:10])
    second.observe("a", rows[10:])
    second.observe("b", rows[:3])
    second.observe("c", second._last[0] if second._last else rows)
    first.add(second.packed())
    assert first.tokens == whole.tokens == 30
    torch.testing.assert_close(first._sums["a"], whole._sums["a"])
    assert first._counts == {"a": 30, "b": 3, "c": 3}


def test_a_model_that_ranks_settle_to_share_out_is_told_and_foreseen_as_that(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path))
    folder, spec = make_run(model_folder, tmp_path / "rows.jsonl"), read_spec(str(model_folder), None)
    session, budget = Session(folder, StopWish(folder)), Budget("cpu", "cpu", "", 0, 0)
    chosen = choose_path(spec, session.settings.training)
    alone, settled = _arranged(session, spec, chosen, (64, 128), budget)
    assert alone == chosen and chosen[0] == "fast" and settled.sharding == "ddp"
    session.group.size = 2
    monkeypatch.setattr(sharded, "shares_out", lambda *_: True)
    (path, reason), settled = _arranged(session, spec, chosen, (64, 128), budget)
    assert session.group.lockstep and (path, settled.sharding) == ("general", "fsdp")
    assert "share out" in reason and choose_path(spec, settled) == (path, reason)


def test_the_smallest_of_the_gpus_decides_whether_a_model_is_shared_out(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two(Alone):
        size = 2

        def meet(self, name: str, value: str) -> list[str]:
            return [value, "1000"] if name == "limit" else [value, value]

    needs = {"ddp": 2000, "fsdp": 900}
    monkeypatch.setattr(
        sharded, "predict_parts", lambda training, *_: [MemoryPart("weights", needs[training.sharding])]
    )
    training = TrainingSettings(device="cuda")
    spec = read_spec(str(model_folder), None)
    assert sharded.shares_out(Two(), training, spec, 64, 128, 5000)
    needs["fsdp"] = 1100
    assert not sharded.shares_out(Two(), training, spec, 64, 128, 5000)
    full = training.model_copy(update={"method": "full"})
    needs["fsdp"] = 900
    assert not sharded.shares_out(Two(), full, spec, 64, 128, 5000)


def leader_that_watches(rank_1: dict[str, Any], seen: int) -> Group:
    """A leader of two that saw so many signs of life of rank 1, whose last one stands in the store."""

    class Told:
        def get(self, _name: str) -> bytes:
            return json.dumps(rank_1).encode()

    found = Group.__new__(Group)
    found.leads, found.rank, found.size = True, 0, 2
    found._loss, found._ended, found._store = None, False, cast(Any, Told())
    found._seen, found._about = {1: (seen, 0.0)}, {1: rank_1}
    return found


def test_a_sign_of_life_from_before_a_failure_does_not_count_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group, "CONFIRM", 0.2)
    leader = leader_that_watches({"n": 6, "pid": 1, "host": "elsewhere"}, seen=5)
    threading.Timer(0.05, lambda: setattr(leader, "_seen", {1: (6, 0.0)})).start()
    with pytest.raises(Lost, match=r"Rank 1 of 2 .*elsewhere"):
        leader.confirm()
    monkeypatch.setattr(group, "CONFIRM", 180.0)
    threading.Timer(0.05, lambda: setattr(leader, "_seen", {1: (7, 0.0)})).start()
    leader.confirm()


def test_a_process_that_still_runs_here_gets_time_on_a_busy_box() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    here = {"n": 1, "host": socket.gethostname()}
    found = [
        {**here, "pid": os.getpid()},
        {**here, "pid": ended.pid},
        {**here, "pid": 1, "host": "elsewhere"},
    ]
    patience = [leader_that_watches(about, 1)._patience(1) for about in found]
    assert patience == [group.SILENCE, group.CONFIRM, group.CONFIRM]


# What NCCL asks for and gloo does not


class Strict:
    """Collectives as NCCL has them: of dense tensors on the model's device, here torch's meta device.

    What they would move stays as it is.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moved: list[int] = []
        for name in ("broadcast", "reduce", "all_reduce"):
            monkeypatch.setattr(torch.distributed, name, self.move)
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: [1.0] * tensor.numel())
        monkeypatch.setattr(torch.Tensor, "item", lambda tensor: 1.0)
        monkeypatch.setattr(flat, "_kept", {})

    def move(self, tensor: torch.Tensor, **_where: Any) -> None:
        assert tensor.device.type == "meta" and tensor.is_contiguous() and not tensor.is_sparse
        self.moved.append(tensor.numel())


def test_only_tensors_of_the_models_device_travel_and_buffers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    strict, large = Strict(monkeypatch), FLAT_BUFFER // 4
    weights = [torch.empty(5, 7, device="meta"), torch.empty(7, 3, device="meta").t()]
    weights.append(torch.empty(large, device="meta"))
    for weight in weights:
        weight.requires_grad_()
    weights[0].grad = torch.empty(7, 5, device="meta").t()
    flat.broadcast(weights)
    flat.reduce(weights, 0.5, leads=True)
    assert strict.moved == [56, large, 3, 56, large]
    assert all(weight.grad is not None for weight in weights)
    (buffer,) = flat._kept.values()
    assert buffer.numel() == 56
    assert flat.anywhere(False, "meta") and strict.moved[-1] == 1


@pytest.mark.parametrize(("device", "backend"), [("cuda", "nccl"), ("cpu", "gloo")])
def test_gpus_talk_by_nccl_and_processors_by_gloo(device: str, backend: str) -> None:
    made: list[str] = []

    class Dist:
        def PrefixStore(self, name: str, store: Any) -> None:
            assert name == "collectives"

        def init_process_group(self, name: str, **about: Any) -> None:
            made.append(name)

    leader = leader_that_watches({"n": 1, "pid": 1, "host": "elsewhere"}, 1)
    leader._dist, leader._torch_store = Dist(), None
    leader.connect(device)
    assert made == [backend] and leader._aborts == (device == "cuda")


def test_a_collective_that_waits_for_a_lost_gpu_is_given_up_and_its_result_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_up = threading.Event()
    monkeypatch.setattr(group, "give_up", given_up.set)
    leader = leader_that_watches({"n": 1, "pid": 1, "host": "elsewhere"}, 1)
    leader._over, leader._aborts = threading.Event(), True
    lost = Lost("Rank 1 is gone.", "Resume the run.")

    def lose() -> None:
        leader._loss = lost
        leader._see_that_it_ends()

    watch = threading.Timer(0.05, lose)
    watch.start()
    with pytest.raises(Lost, match="Rank 1 is gone"):
        leader._together(lambda: given_up.wait(120))
    assert given_up.is_set()
    leader._over.set()
    watch.join()


def test_a_gpu_that_broke_does_not_silence_its_rank() -> None:
    told: dict[str, Any] = {}

    class Kept:
        def set(self, name: str, value: str) -> None:
            told.update(json.loads(value))

    def broken() -> dict[str, Any]:
        raise RuntimeError("CUDA error: unspecified launch failure")

    leader = leader_that_watches({}, 1)
    leader._beats, leader._heart_store, leader._gauge = 4, cast(Any, Kept()), broken
    leader._beat()
    assert told["n"] == 5 and told["pid"] == os.getpid()
