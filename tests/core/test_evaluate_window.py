"""What is left out of a conversation that is longer than the model reads."""

from __future__ import annotations

import pytest

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.evaluate.window import fit_prompt
from tests.tiny import build_tokenizer

SYSTEM = Message("system", "yes")
TALK = [
    Message("user", "sky " * 40),
    Message("assistant", "blue"),
    Message("user", "birds " * 20),
    Message("assistant", "no"),
    Message("user", "today?"),
]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return ChatFormat.from_folder(folder)


def test_what_fits_stays_whole(chat: ChatFormat) -> None:
    whole = chat.prompt_ids([SYSTEM, *TALK])
    assert fit_prompt(chat, [SYSTEM, *TALK], "", None, 9).ids == whole
    fitted = fit_prompt(chat, [SYSTEM, *TALK], "", len(whole) + 9, 9)
    assert (fitted.ids, fitted.dropped, fitted.room) == (whole, 0, 9)


@pytest.mark.parametrize("dropped", [1, 2])
def test_the_fewest_oldest_turns_are_left_out_and_the_system_text_stays(
    chat: ChatFormat, dropped: int
) -> None:
    kept = chat.prompt_ids([SYSTEM, *TALK[2 * dropped :]])
    fitted = fit_prompt(chat, [SYSTEM, *TALK], "", len(kept) + 9, 9)
    assert (fitted.ids, fitted.dropped, fitted.room) == (kept, dropped, 9)


def test_the_answer_is_shorter_where_the_question_leaves_less_room(chat: ChatFormat) -> None:
    question = chat.prompt_ids([SYSTEM, TALK[-1]])
    fitted = fit_prompt(chat, [SYSTEM, *TALK], "", len(question) + 3, 9)
    assert (fitted.ids, fitted.dropped, fitted.room) == (question, 2, 3)
    with pytest.raises(TuneError, match=f"{len(question)} tokens with its system prompt; the model reads"):
        fit_prompt(chat, [SYSTEM, *TALK], "", len(question), 9)
