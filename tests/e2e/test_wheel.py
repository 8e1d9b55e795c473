"""What a user gets: the built wheel, away from the sources."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_the_wheel_brings_one_package_with_its_assets(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ollama_tune"}
    for wanted in (
        "assets/model/model.safetensors",
        "assets/model/tokenizer.json",
        "assets/data/tickets.jsonl",
        "assets/docs/agents.md",
        "assets/docs/run-yaml.md",
    ):
        assert f"ollama_tune/{wanted}" in names
    assert any(name.endswith(".tcss") for name in names)
    assert any(name.startswith("ollama_tune/assets/help/") and name.endswith(".md") for name in names)
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_folder_with_code_is_packed(wheel: Path) -> None:
    packed = {name.removeprefix("ollama_tune/") for name in zipfile.ZipFile(wheel).namelist()}
    sources = {
        file.relative_to(ROOT).as_posix()
        for room in ("core", "tui", "assets")
        for file in (ROOT / room).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert sources - packed == set()


def test_it_works_from_an_empty_folder(installed: dict[str, str], tmp_path: Path) -> None:
    home = {"OLLAMA_TUNE_HOME": str(tmp_path / "home"), "OLLAMA_HOST": "127.0.0.1:9"}
    empty = tmp_path / "empty"
    empty.mkdir()
    where = subprocess.run(
        [sys.executable, "-c", "import ollama_tune.core as c; print(c.__path__[0])"],
        env=installed, cwd=empty, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(installed["TARGET"])
    done = subprocess.run(
        ["ollama-tune", "plan", "--output", "run.yaml"],
        env=installed | home, cwd=empty, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((empty / "run.yaml").read_text())["model"]["source"] == "bundled"
    module = subprocess.run(
        [sys.executable, "-m", "ollama_tune.tui", "--version"],
        env=installed | home, cwd=empty, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert module.stdout.startswith("ollama-tune ")
