from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_tune.core.errors import BusyError, TuneError
from ollama_tune.core.models import download as downloads
from ollama_tune.core.models.about import about
from ollama_tune.core.models.download import download, fetch_metadata
from ollama_tune.core.models.locate import is_complete, list_models, resolve
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.paths import models_dir
from tests.core.hub import COMMIT, Hub, online, running
from tests.tiny import build_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("OLLAMA_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    monkeypatch.setattr(downloads, "TOLD_EVERY", 30_000)
    with online(model, monkeypatch) as hub:
        yield hub


def progress_list() -> tuple[list[tuple[int, int]], downloads.Progress]:
    calls: list[tuple[int, int]] = []
    return calls, lambda done, total: calls.append((done, total))


def shard(folder: Path) -> None:
    """Rewrite the single weight file as two with an index."""
    from safetensors.numpy import save_file
    from safetensors.torch import load_file

    tensors = {
        name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    mapping = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(mapping.values()):
        save_file({name: tensors[name] for name in names if mapping[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))


@pytest.mark.parametrize("sharded", [False, True])
def test_the_description_is_fetched_first_and_the_weights_later(hub: Hub, model: Path, sharded: bool) -> None:
    if sharded:
        shard(model)
    (model / "pytorch_model.bin").write_bytes(b"x" * 60_000)
    folder = fetch_metadata("org/tiny")
    assert not list(folder.glob("*.safetensors"))
    assert not is_complete(folder)
    assert resolve("org/tiny") == folder
    described = read_spec("org/tiny")
    calls, progress = progress_list()
    assert download("org/tiny", None, progress) == folder
    weights = sorted(model.glob("*.safetensors"))
    total = sum(path.stat().st_size for path in weights)
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in weights)
    assert {path.name for path in folder.iterdir()} & {"pytorch_model.bin"} == set()
    assert read_spec("org/tiny") == described
    assert (described.name, described.folder, described.parameters) == (
        "tiny",
        folder,
        read_spec(str(model)).parameters,
    )


def test_what_is_here_needs_no_hub(hub: Hub, model: Path) -> None:
    first = download("org/tiny", None, lambda *_: None)
    hub.requests.clear()
    assert download("org/tiny", None, lambda *_: None) == fetch_metadata("org/tiny") == first
    assert download(str(model), None, lambda *_: None) == fetch_metadata(str(model)) == model
    assert hub.requests == []
    listed = {choice.source: choice for choice in list_models()}
    assert (listed["org/tiny"].kind, listed["org/tiny"].note) == ("downloaded", "")
    assert listed["org/tiny"].size == (model / "model.safetensors").stat().st_size


def test_branches_tags_and_commits(hub: Hub) -> None:
    folder = fetch_metadata("org/tiny", "v1")
    assert folder.name == COMMIT
    assert resolve("org/tiny", "v1") == resolve("org/tiny", COMMIT) == folder
    with pytest.raises(TuneError, match="not downloaded"):
        resolve("org/tiny", "v2")
    with pytest.raises(TuneError, match="no such revision"):
        fetch_metadata("org/tiny", "v2")


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, model: Path) -> None:
    size = (model / "model.safetensors").stat().st_size

    class Stop(Exception):
        """The person pressed stop."""

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        download("org/tiny", None, stop)
    folder = resolve("org/tiny")
    part = folder / ".model.safetensors.part"
    held = part.stat().st_size
    assert 0 < held < size
    assert not (folder / "model.safetensors").exists()
    hub.requests.clear()
    calls, progress = progress_list()
    download("org/tiny", None, progress)
    assert f"/cdn/model.safetensors bytes={held}-" in hub.requests
    assert calls[0][0] > held
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not part.exists()


def test_broken_connections_are_taken_up_again_by_itself(hub: Hub, model: Path) -> None:
    hub.cut_after, hub.cuts = 40_000, 4
    calls, progress = progress_list()
    folder = download("org/tiny", None, progress)
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    spans = [
        request.split("bytes=")[1]
        for request in hub.requests
        if request.startswith("/cdn/") and "-" in request
    ]
    assert [span for span in spans if span.endswith("-")] == ["0-", "40000-", "80000-", "120000-", "160000-"]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_a_connection_that_never_holds_is_given_up(hub: Hub) -> None:
    fetch_metadata("org/tiny")
    hub.requests.clear()
    hub.cuts = 1000
    with pytest.raises(TuneError, match="cannot be reached"):
        download("org/tiny", None, lambda *_: None)
    assert sum(request.startswith("/cdn/") for request in hub.requests) == downloads.ATTEMPTS


def test_a_server_without_ranges_sends_it_anew(hub: Hub, model: Path) -> None:
    folder = fetch_metadata("org/tiny")
    (folder / ".model.safetensors.part").write_bytes(b"x" * 1000)
    hub.ranges = False
    download("org/tiny", None, lambda *_: None)
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


@pytest.mark.parametrize("excess", [0, 10])
def test_a_part_that_is_whole_or_too_long_already(hub: Hub, model: Path, excess: int) -> None:
    folder = fetch_metadata("org/tiny")
    content = (model / "model.safetensors").read_bytes()
    (folder / ".model.safetensors.part").write_bytes(content + b"x" * excess)
    if excess:
        with pytest.raises(TuneError, match="arrived damaged"):
            download("org/tiny", None, lambda *_: None)
    download("org/tiny", None, lambda *_: None)
    assert (folder / "model.safetensors").read_bytes() == content


def test_damaged_weights_never_get_their_name(hub: Hub) -> None:
    hub.corrupt = True
    with pytest.raises(TuneError, match="arrived damaged"):
        download("org/tiny", None, lambda *_: None)
    folder = resolve("org/tiny")
    assert not list(folder.glob("*model.safetensors*"))
    hub.corrupt = False
    assert is_complete(download("org/tiny", None, lambda *_: None))


def test_a_full_disk_is_told_before(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 5 * 10**8))
    with pytest.raises(TuneError, match=r"needs 512\.2 MiB .* where 476\.8 MiB are free"):
        download("org/tiny", None, lambda *_: None)
    assert not any(request.startswith("/cdn/") and "bytes=0-" not in request for request in hub.requests)


def test_two_downloads_of_one_model_do_not_mix(hub: Hub) -> None:
    folder = fetch_metadata("org/tiny")
    with downloads.exclusive(folder), pytest.raises(BusyError, match="Another ollama-tune"):
        download("org/tiny", None, lambda *_: None)


def test_a_name_the_hub_does_not_know(hub: Hub) -> None:
    with pytest.raises(TuneError, match="knows no model org/other, or it is private"):
        fetch_metadata("org/other")
    assert not list(models_dir().iterdir())


def test_a_gated_model_says_where_to_accept(hub: Hub) -> None:
    hub.gated = True
    with pytest.raises(TuneError, match="accepted its licence") as caught:
        fetch_metadata("org/tiny")
    assert "https://huggingface.co/org/tiny" in caught.value.fix


SECRET = "hf_topsecretvalue"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return SECRET


def test_an_account_that_was_not_let_in_is_told_from_none(hub: Hub, token: str) -> None:
    hub.gated, hub.accounts = True, {token: False}
    with pytest.raises(TuneError, match="your account has not been let in") as caught:
        fetch_metadata("org/tiny")
    assert "Ask for it on https://huggingface.co/org/tiny" in caught.value.fix
    assert SECRET not in f"{caught.value}{caught.value.details}{caught.value.__cause__!r}"


def test_a_gated_model_is_fetched_with_the_accounts_token_and_noted_as_gated(hub: Hub, token: str) -> None:
    hub.gated, hub.accounts = True, {token: True}
    folder = download("org/tiny", None, lambda *_: None)
    assert is_complete(folder)
    assert {sent for path, sent in hub.sent if not path.startswith("/cdn/")} == {f"Bearer {SECRET}"}
    assert about(read_spec("org/tiny")).gated == "manual"
    assert not [path for path in folder.iterdir() if SECRET.encode() in path.read_bytes()]


def test_a_wrong_token_is_not_taken_for_a_missing_model(hub: Hub, token: str) -> None:
    with pytest.raises(TuneError, match="does not take your Hugging Face token") as caught:
        fetch_metadata("org/tiny")
    assert "hf auth login" in caught.value.fix
    assert SECRET not in f"{caught.value}{caught.value.details}"


def test_the_token_is_not_sent_to_another_host_that_stores_the_weights(
    hub: Hub, model: Path, token: str
) -> None:
    hub.accounts = {token: True}
    with running(model) as store:
        hub.cdn = store.url.replace("127.0.0.1", "localhost")
        folder = download("org/tiny", None, lambda *_: None)
        assert is_complete(folder)
        assert store.sent
        assert {sent for _, sent in store.sent} == {None}


def test_a_token_that_an_answer_repeats_is_left_out_of_the_details(hub: Hub, token: str) -> None:
    hub.failing, hub.said = 500, f"bad header Bearer {SECRET}"
    with pytest.raises(TuneError) as caught:
        fetch_metadata("org/tiny")
    assert SECRET not in f"{caught.value}{caught.value.details}"


@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        (429, "", "asks for a pause"),
        (403, "Access to this resource is disabled.", "switched the model org/tiny off"),
        (500, "the database is away", r"error 500 for org/tiny \(the database is away\)"),
    ],
)
def test_other_refusals_are_told_in_the_hubs_words(hub: Hub, status: int, said: str, words: str) -> None:
    hub.failing, hub.said = status, said
    with pytest.raises(TuneError, match=words):
        fetch_metadata("org/tiny")


def test_what_is_left_to_download_counts_what_an_interrupted_one_left(hub: Hub, model: Path) -> None:
    folder = fetch_metadata("org/tiny")
    size = (model / "model.safetensors").stat().st_size
    found = about(read_spec("org/tiny"))
    assert (found.to_download, found.folder, found.gated, found.offer) == (size, folder, "", None)
    assert found.tokenizer == f"BPE, {read_spec('org/tiny').vocabulary_size} entries"
    (folder / ".model.safetensors.part").write_bytes(bytes(1000))
    assert about(read_spec("org/tiny")).to_download == size - 1000
    (folder / ".model.safetensors.part").unlink()
    download("org/tiny", None, lambda *_: None)
    assert about(read_spec("org/tiny")).to_download == 0


def test_facts_of_the_hub_that_were_changed_by_hand_do_no_harm(hub: Hub) -> None:
    folder = fetch_metadata("org/tiny")
    spec = read_spec("org/tiny")
    facts = {"gated": ["x"], "weights": {"../../etc/passwd": 5, "a": "b"}}
    (folder / "ollama-tune-hub.json").write_text(json.dumps(facts))
    assert (about(spec).gated, about(spec).to_download) == ("", 0)
    (folder / "ollama-tune-hub.json").unlink()
    assert about(spec).to_download == spec.weight_bytes


def test_a_hub_out_of_order_and_a_hub_that_is_away(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.failing = 503
    with pytest.raises(TuneError, match="answered with error 503"):
        fetch_metadata("org/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TuneError, match="cannot be reached") as caught:
        download("org/tiny", None, lambda *_: None)
    assert "on this machine" in caught.value.fix
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TuneError, match="HF_HUB_OFFLINE"):
        fetch_metadata("org/tiny")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", r"no config\.json"),
        ("tokenizer.json", r"no tokenizer\.json"),
        ("model.safetensors", "stored as pickle"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_anything_is_fetched(
    hub: Hub, model: Path, missing: str, said: str
) -> None:
    (model / missing).unlink()
    (model / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(TuneError, match=said):
        fetch_metadata("org/tiny")
    assert not list(models_dir().iterdir())


def test_an_index_that_points_elsewhere_is_refused(hub: Hub, model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = model / "model.safetensors.index.json"
    for stored, said in (
        ({"weight_map": {"a": "../../x.safetensors"}}, "damaged"),
        ({"weight_map": {"a": ["x"]}}, "damaged"),
        ([], "damaged"),
        ({"weight_map": {"a": "gone.safetensors"}}, "missing on the hub"),
    ):
        index.write_text(json.dumps(stored))
        with pytest.raises(TuneError, match=said):
            fetch_metadata("org/tiny")


def test_a_folder_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (models_dir() / "models--org--tiny").write_text("in the way")
    with pytest.raises(TuneError, match="cannot be written: Not a directory"):
        fetch_metadata("org/tiny")


def test_the_library_takes_the_hub_from_its_environment(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ollama_tune.core.models.download import download, is_hub_id\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "print(download('org/tiny', None, lambda *_: None))\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    environment = os.environ | online | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    shown = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment
    )
    assert shown.stderr.splitlines()[-1:] == []
    assert shown.stdout.splitlines() == [str(resolve("org/tiny")), "set()"]
    assert is_complete(resolve("org/tiny"))
