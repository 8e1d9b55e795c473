"""The rules of the house: who may import whom, and what a start may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_tune import core, tui

ROOMS = ["machine", "models", "data", "plan", "runs", "train", "evaluate", "export"]
LEVEL = {"machine": 0, "models": 0, "data": 0, "plan": 1, "runs": 2, "train": 3, "evaluate": 3, "export": 3}
HEAVY = {"torch", "transformers", "datasets", "peft"}
MAY_TORCH = {
    "train",
    "evaluate/generate.py",
    "evaluate/general_engine.py",
    "evaluate/compare.py",
    "evaluate/chat.py",
    "evaluate/choose.py",
    "export/adapter.py",
    "export/adapter_gguf.py",
    "export/merge.py",
    "export/outputs.py",
    "export/quantize.py",
    "export/structure.py",
    "export/verify.py",
    "export/weights.py",
}
CORE, TUI = Path(core.__path__[0]), Path(tui.__path__[0])


def imports(file: Path) -> set[str]:
    """Every module a file imports, at the top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def tops(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


@pytest.mark.parametrize("room", ROOMS)
def test_lower_rooms_do_not_know_higher_ones(room: str) -> None:
    for file in (CORE / room).glob("*.py"):
        for name in imports(file):
            parts = name.split(".")
            if name.startswith("ollama_tune.core.") and parts[2] in LEVEL:
                assert LEVEL[parts[2]] <= LEVEL[room], f"{room}/{file.name} imports {name}"
            assert not name.startswith("ollama_tune.tui"), f"{room}/{file.name} imports {name}"


def test_core_never_imports_textual() -> None:
    assert [file for file in CORE.rglob("*.py") if "textual" in tops(file)] == []


def test_the_interface_never_imports_a_heavy_library() -> None:
    assert [file for file in TUI.rglob("*.py") if tops(file) & HEAVY] == []


def test_only_the_named_files_import_torch() -> None:
    for file in CORE.rglob("*.py"):
        name = file.relative_to(CORE).as_posix()
        if tops(file) & (HEAVY | {"bitsandbytes"}):
            assert name in MAY_TORCH or name.split("/")[0] in MAY_TORCH, (
                f"{name} imports {tops(file) & HEAVY}"
            )


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_core_without_its_workers_loads_no_heavy_library() -> None:
    light = [
        "ollama_tune.core." + file.relative_to(CORE).with_suffix("").as_posix().replace("/", ".")
        for file in CORE.rglob("*.py")
        if file.name != "__init__.py"
        and not {file.relative_to(CORE).as_posix(), file.relative_to(CORE).parts[0]} & MAY_TORCH
    ]
    modules = loaded_after("\n".join(f"import {name}" for name in light))
    assert not modules & (HEAVY | {"textual", "bitsandbytes", "xllamacpp"})


def test_the_interface_loads_no_heavy_library() -> None:
    names = [
        "ollama_tune.tui." + file.relative_to(TUI).with_suffix("").as_posix().replace("/", ".")
        for file in TUI.rglob("*.py")
        if file.name not in ("__init__.py", "__main__.py")
    ]
    assert not loaded_after("\n".join(f"import {name}" for name in names)) & HEAVY


def test_help_loads_neither_textual_nor_a_heavy_library() -> None:
    modules = loaded_after("from ollama_tune.tui.cli import cli\ncli.main(['--help'], standalone_mode=False)")
    assert not modules & (HEAVY | {"textual", "pydantic"})


def test_no_file_is_longer_than_the_house_rule() -> None:
    files = [file for folder in (CORE, TUI) for file in folder.rglob("*.py")]
    assert [(file.name, n) for file in files if (n := len(file.read_text().splitlines())) > 400] == []
