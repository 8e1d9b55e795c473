"""What is told of a model in Ollama though it keeps its name: it works, but not quite as it was sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.export_asked import check
from tests.core.handover_parts import Made, Serve, ended
from tests.ollama_double import Faults


def test_sampling_values_that_appear_by_themselves_are_told(made: Made, serve: Serve) -> None:
    serve(faults=Faults(more_parameters={"temperature": 0.6, "num_keep": 1048576}))
    found, _ = made.give()
    told = check(found, "ollama settings")
    assert (told.verdict, found.ollama_name) == ("warn", "birds:latest")
    assert "set temperature by itself" in told.text


def test_a_template_that_the_server_put_over_the_models_shows_in_the_checks(
    made: Made, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import ollama_models

    monkeypatch.setattr(ollama_models, "nearest", lambda template: "gemma-instruct")
    serve()
    found, _ = made.give()
    assert check(found, "ollama prompt").verdict == "fail"
    assert "chat template of its own" in check(found, "ollama settings").text
    assert "set" not in check(found, "ollama settings").figure


def test_a_renderer_of_the_servers_own_is_told_with_what_it_makes_of_the_prompts(
    made: Made, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import ollama_models

    monkeypatch.setitem(ollama_models.FORCED, "llama", ("gemma4", "gemma4"))
    serve()
    found, _ = made.give()
    told = check(found, "ollama prompt")
    assert (told.verdict, found.ollama_name) == ("warn", "birds:latest")
    assert "renderer of its own" in told.text
    assert "uses its own renderer gemma4" in check(found, "ollama settings").text


def test_other_answers_are_a_remark(made: Made, serve: Serve) -> None:
    serve(lambda reply: replace(reply, text="Never that.", reason="stop"))
    found, _ = made.give()
    told = check(found, "ollama answer")
    assert (told.verdict, told.figure, found.ollama_name) == ("warn", "0 of 4 equal", "birds:latest")


@pytest.mark.parametrize(("kept", "verdict"), [(40, "pass"), (10, "warn")])
def test_coarse_types_are_judged_by_the_beginning(kept: int, verdict: str, made: Made, serve: Serve) -> None:
    answer = "It is a small brown bird that sings at night in June."
    serve(lambda reply: replace(reply, text=answer[:kept] + "~ and so on", reason="stop"))
    known = [ended(one, answer) for one in made.reference]
    found, _ = made.give(reference=known, **{"export.type": "q4_k_m"})
    told = check(found, "ollama answer")
    assert (told.verdict, told.figure) == (verdict, f"{kept / 48:.0%} alike")
    assert "calls its quantization level F16, not q4_k_m" in check(found, "ollama settings").text


def test_a_server_that_does_not_count_is_compared_by_texts_alone(made: Made, serve: Serve) -> None:
    serve(faults=Faults(uncounted=True))
    found, _ = made.give()
    told = check(found, "ollama prompt")
    assert (told.verdict, told.data["counts"]) == ("pass", 0)
    assert "does not show token counts" in told.text


def test_a_server_that_shows_nothing_is_skipped_by_name(made: Made, serve: Serve) -> None:
    serve(version="0.11.4", faults=Faults(uncounted=True))
    found, _ = made.give()
    assert check(found, "ollama prompt").verdict == "skipped"
    assert "neither prompts nor token counts" in check(found, "ollama prompt").text


def test_a_model_that_stays_in_memory_is_a_remark(
    made: Made, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ollama_tune.core.export import publish

    monkeypatch.setattr(publish, "UNLOADING", 0.2)
    serve(faults=Faults(unload_seconds=30.0))
    found, _ = made.give()
    assert check(found, "ollama").verdict == "warn"
    assert "still in memory" in check(found, "ollama").text


@pytest.mark.parametrize(
    ("reference", "thought", "text", "verdict"),
    [
        ("<think>\nHm, a bird.\n</think>\n\nA wren.", "Hm, a bird.", "A wren.", "pass"),
        ("Hm, a bird.\n</think>\n\nA wren.", "Hm, a bird.", "A wren.", "pass"),
        ("<think>\nHm, a", "Hm, a", "", "pass"),
        ("<think>\nHm, a bird.\n</think>\n\nA wren.", "Hm, a fish.", "A wren.", "warn"),
    ],
)
def test_thoughts_that_ollama_takes_out_of_an_answer_are_compared_too(
    reference: str, thought: str, text: str, verdict: str, made: Made, serve: Serve
) -> None:
    serve(lambda reply: replace(reply, text=text, thought=thought, reason="stop"))
    found, _ = made.give(reference=[ended(answer, reference) for answer in made.reference])
    assert check(found, "ollama answer").verdict == verdict


def test_what_a_go_template_cannot_do_is_told(
    made: Made, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ollama_tune.core.export import gotemplate

    whole = gotemplate.go_template(made.chat)
    assert isinstance(whole, gotemplate.GoTemplate)
    limited = replace(whole, limits=("A late system text stands elsewhere.",))
    monkeypatch.setattr(gotemplate, "go_template", lambda chat: limited)
    serve(version="0.24.0")
    found, _ = made.give()
    told = check(found, "ollama template")
    assert (told.verdict, told.text) == ("warn", "A late system text stands elsewhere.")
    assert found.ollama_name == "birds:latest"
