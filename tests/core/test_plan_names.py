"""Names by Ollama's rules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.names import check_ollama_name, suggest_name
from tests.cases import LLAMA_8B, TINY


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("my-tune", "my-tune:latest"),
        (" my-tune ", "my-tune:latest"),
        ("My_Tune.2", "My_Tune.2:latest"),
        ("_x", "_x:latest"),
        ("3", "3:latest"),
        ("my-tune:q8_0", "my-tune:q8_0"),
        ("me/my-tune:v1.2", "me/my-tune:v1.2"),
        ("registry.example.com/me/my-tune", "registry.example.com/me/my-tune:latest"),
        ("localhost:5000/me/my-tune", "localhost:5000/me/my-tune:latest"),
        ("localhost:5000/me/my-tune:v1", "localhost:5000/me/my-tune:v1"),
        ("x" * 80 + ":" + "y" * 80, "x" * 80 + ":" + "y" * 80),
    ],
)
def test_a_good_name_gets_its_tag(name: str, full: str) -> None:
    assert check_ollama_name(name) == full
    assert check_ollama_name(full) == full


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my tune", "a space"),
        ("-my-tune", "start with '-'"),
        (".x", "start with '.'"),
        ("über", "'ü'"),
        ("a$b", "'$'"),
        ("a\x1bb", "'␛'"),
        ("a\u202eb", "<U+202E>"),
        ("me.you/x", "namespace"),
        ("x:a:b", "model"),
        ("x:v 1", "tag"),
        ("x:", "tag in the Ollama name is empty"),
        ("", "model in the Ollama name is empty"),
        ("/x", "namespace in the Ollama name is empty"),
        ("me/", "model in the Ollama name is empty"),
        ("a/b/c/d", "'/'"),
        ("x" * 81, "81 characters"),
        ("x:" + "y" * 81, "81 characters"),
        ("h" * 351 + "/me/x", "351 characters"),
        ("x٣", "'٣'"),
    ],
)
def test_a_bad_name_is_told_with_its_part_and_character(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_ollama_name(name)
    assert words in caught.value.what
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "path", "expected"),
    [
        ("Qwen/Qwen3-4B", "/data/My Support.jsonl", "qwen3-4b-my-support"),
        ("tiny", "bundled", "tiny-tickets"),
        ("Llama 3.1 (8B) ✓", "x.csv", "llama-3.1-8b-x"),
        ("--", "/data/…", "my-tune"),
        ("m" * 200, "d" * 200 + ".json", "m" * 40 + "-" + "d" * 19),
        ("m", "/data/.hidden", "m-hidden"),
        ("m", "/data/Café-Kunden.csv", "m-cafe-kunden"),
    ],
)
def test_a_suggested_name_is_made_of_model_and_data(model: str, path: str, expected: str) -> None:
    name = suggest_name(replace(TINY, name=model), path)
    assert name == expected
    assert check_ollama_name(name) == f"{name}:latest"


def test_the_usual_case_reads_well() -> None:
    assert suggest_name(LLAMA_8B, "tickets.jsonl") == "llama-3.1-8b-instruct-tickets"
