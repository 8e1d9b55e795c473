"""Turns conversations into the exact text and token ids the model sees, without transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.templates import ChatTemplate
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.models import tokenizer_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_TOKENS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end_of_turn|>",
    "<|endofturn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<｜end▁of▁sentence｜>",
    "<|role_end|>",
    "<eos>",
    "</s>",
)
"""Tokens that end a turn in published models; counted only where the model's template prints them."""

_TOKEN_LIKE = re.compile(r"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\]")
"""The outer form of control tokens; some models have thousands of them, so each is looked up, not tried."""

_PROBE = "Q7probe"


class ChatFormat:
    """A model's tokenizer and chat template.

    Renders byte for byte as transformers' `apply_chat_template` with the same messages. The one
    exception: where a template refuses a system message or drops it from some conversations
    (`merges_system`), the system text is put before the first user text, in training and in use alike.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, template: ChatTemplate, config: Path | None = None
    ) -> None:
        special = tokenizer_files.special_tokens(folder)
        self.folder = folder
        self._config = config or folder
        self.template = template.source
        self.bos_token = special.get("bos_token")
        self.eos_token = special.get("eos_token")
        self._tokenizer = tokenizer
        self._template = template
        self._pad_token = special.get("pad_token")
        self._render([Message("user", _PROBE)], True)
        self.merges_system = not self._carries_system()

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        now: datetime | None = None,
        *,
        template: str | None = None,
        config: Path | None = None,
    ) -> ChatFormat:
        """Read a model folder. `now` is the date a template may print; default the present moment.

        `template` replaces the folder's own chat template; `config` is the folder whose config files name
        the ending and padding ids where `folder` holds a tokenizer only.

        Raises `TuneError` without a chat template, without or with a damaged `tokenizer.json`, and
        when the template cannot render a single question.
        """
        source = template if template is not None else tokenizer_files.chat_template(folder)
        if source is None:
            raise TuneError(
                "This is a base model without a chat template: it has no form for questions and answers.",
                "Choose a chat model (its name often ends in -Instruct, -it or -chat).",
            )
        compiled = ChatTemplate(source, tokenizer_files.special_tokens(folder), now)
        return cls(folder, load_tokenizer(folder), compiled, config)

    def _carries_system(self) -> bool:
        """True when a system text shows in a prompt, in one exchange and in two."""
        system, user, answer = Message("system", _PROBE), Message("user", "u"), Message("assistant", "a")
        try:
            return all(
                _PROBE in self._render([system, user, *rest], not rest)
                for rest in ([], [answer], [answer, user, answer])
            )
        except TuneError:
            return False

    def adapt(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages as the template is given them: the same, unless it cannot carry a system text."""
        if not self.merges_system or all(message.role != "system" for message in messages):
            return messages
        system = "\n\n".join(message.content for message in messages if message.role == "system")
        rest = [message for message in messages if message.role != "system"]
        if rest and rest[0].role == "user":
            return [Message("user", f"{system}\n\n{rest[0].content}"), *rest[1:]]
        return [Message("user", system), *rest]

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return self._template.render(turns, add_generation_prompt)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation; `TuneError` when the template refuses it."""
        return self._render(self.adapt(messages), add_generation_prompt)

    def encode(self, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Token ids and each token's (start, end) in `text` by character; no token is added."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return tuple(encoding.ids), tuple(encoding.offsets)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of token ids, special tokens included unless `skip_special`."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids after which the model writes its answer."""
        return self.encode(self.render(messages, add_generation_prompt=True))[0]

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: those configured, the tokenizer's eos, and end tokens of the template."""
        ids = set(tokenizer_files.configured_id(self._config, "eos_token_id"))
        texts = [text for text in END_TOKENS if text in self.template] + [self.eos_token or ""]
        ids.update(self._id(text) for text in texts if self._id(text) >= 0)
        return frozenset(i for i in ids if i < self.vocabulary_size)

    @cached_property
    def stop_texts(self) -> tuple[str, ...]:
        """The stop ids as texts, longest first."""
        texts = {self._tokenizer.id_to_token(i) for i in self.stop_ids}
        return tuple(sorted((text for text in texts if text), key=len, reverse=True))

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """Special tokens by id: texts that become one token wherever they stand."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {number: token.content for number, token in added.items() if token.special}

    def holds_special_token(self, text: str) -> bool:
        """True when a text from outside would be read as one of the model's control tokens."""
        return any(found in self._special_texts for found in _TOKEN_LIKE.findall(text))

    @cached_property
    def _special_texts(self) -> frozenset[str]:
        return frozenset(self.special_tokens.values())

    @cached_property
    def pad_id(self) -> int:
        """The id that fills short rows of a batch; never trained on."""
        configured = tokenizer_files.configured_id(self._config, "pad_token_id")
        candidates = (self._id(self._pad_token or ""), *configured, self._id(self.eos_token or ""))
        return next((i for i in candidates if 0 <= i < self.vocabulary_size), 0)

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        added = self._tokenizer.get_added_tokens_decoder()
        return max(self._tokenizer.get_vocab_size(), max(added, default=-1) + 1)

    def _id(self, text: str) -> int:
        found = self._tokenizer.token_to_id(text) if text else None
        return -1 if found is None else found


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `tokenizer.json`, set to neither cut, pad, nor add tokens."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TuneError(
            f"The model folder {folder} has no tokenizer.json.",
            "Choose a model that ships one, or download this one again.",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise TuneError(
            f"The tokenizer {path} is damaged.", "Download the model again.", details=repr(error)
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _drop_post_processor(tokenizer)
    _add_configured_tokens(tokenizer, tokenizer_files.read_json(folder / "tokenizer_config.json") or {})
    return tokenizer


def _drop_post_processor(tokenizer: Tokenizer) -> None:
    """It would only add tokens (never wanted here) and trim blanks off the offsets."""
    tokenizer.post_processor = None


def _add_configured_tokens(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Tokens that only `tokenizer_config.json` names are added as transformers does."""
    from tokenizers import AddedToken

    listed = config.get("added_tokens_decoder")
    entries = listed.items() if isinstance(listed, dict) else ()
    numbered = [(int(i), entry) for i, entry in entries if i.isdecimal() and isinstance(entry, dict)]
    for _, entry in sorted(numbered, key=lambda pair: pair[0]):
        text = entry.get("content")
        if isinstance(text, str) and text and tokenizer.token_to_id(text) is None:
            flags = {
                name: bool(entry.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized")
            }
            tokenizer.add_tokens([AddedToken(text, special=bool(entry.get("special")), **flags)])
