"""Turns conversations into the exact text and token ids the model sees, without transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.chat.embedding import require_rows
from ollama_tune.core.data.chat.pins import MERGE, options_of, pin, published
from ollama_tune.core.data.chat.templates import ChatTemplate
from ollama_tune.core.data.values import Message
from ollama_tune.core.errors import TuneError
from ollama_tune.core.models import tokenizer_files
from ollama_tune.core.text import common_prefix

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

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
    "<|tool_response>",
    "<eos>",
    "</s>",
)
"""Tokens that end a turn in published models; counted only where the model's template prints them."""

_TOKEN_LIKE = re.compile(r"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\]")
"""The outer form of control tokens; some models have thousands of them, so each is looked up, not tried."""

LONG_HEAD = 200
"""Characters from which the beginning of all conversations is kept in tokens."""
_PROBE = "Q7probe"
_NO_PARAMETERS = {"type": "object", "properties": {}, "required": []}


class ChatFormat:
    """A model's tokenizer and chat template.

    Renders byte for byte as transformers' `apply_chat_template` with the same messages. The one
    exception: where a template refuses a system message or drops it from some conversations
    (`merges_system`), the system text is put before the first user text, in training and in use alike.
    `template` is the text that does all this in any engine, `original` the model's own part of it.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        source: str,
        now: datetime,
        config: Path | None = None,
        options: Mapping[str, bool] | None = None,
    ) -> None:
        special = tokenizer_files.special_tokens(folder)
        self.folder = folder
        self._config = config or folder
        self.bos_token = special.get("bos_token")
        self.eos_token = special.get("eos_token")
        self._tokenizer = tokenizer
        self._pad_token = special.get("pad_token")
        self.known_forms: dict[tuple[object, ...], frozenset[str]] = {}
        """Forms of rows that were searched with marks before, with the notes on them."""
        self._now = now
        self._template = ChatTemplate(pin(source, special, now, options=options), special)
        self._check_question()
        if not self._carries_system():
            merged = pin(source, special, now, merge_system=True, options=options)
            self._template = ChatTemplate(merged, special)

    @property
    def template(self) -> str:
        """The template with everything pinned that could differ between training and use."""
        return self._template.source

    @cached_property
    def original(self) -> str:
        """The template as it was published."""
        return published(self.template)

    @cached_property
    def merges_system(self) -> bool:
        """True when system texts are put before the first user text."""
        return MERGE in self.template

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

        `template` replaces the folder's own chat template and stays as it is where it is pinned already;
        `config` is the folder whose config files name the ending and padding ids where `folder` holds a
        tokenizer only.

        Raises `TuneError` without a chat template, without or with a damaged `tokenizer.json`, when the
        template cannot render a single question, and when the model has no embedding rows for its tokens.
        """
        source = template if template is not None else tokenizer_files.chat_template(folder)
        if source is None:
            raise TuneError(
                "This is a base model without a chat template: it has no form for questions and answers.",
                "Choose a chat model (its name often ends in -Instruct, -it or -chat).",
            )
        made = cls(folder, load_tokenizer(folder), source, now or datetime.now(), config)
        if config is None or config == folder:  # an adapter with a tokenizer brings rows of its own
            require_rows(folder, made.tokenizer, made.prompt_ids([Message("user", _PROBE)]))
        return made

    def with_options(self, options: Mapping[str, bool]) -> ChatFormat:
        """The same with options of the template set, such as `enable_thinking`."""
        return ChatFormat(self.folder, self._tokenizer, self.original, self._now, self._config, options)

    @cached_property
    def options(self) -> dict[str, bool]:
        """The options for thinking that the template has set; those it may not ask for are missing."""
        return options_of(self.template)

    def _check_question(self) -> None:
        """Templates that take texts only as lists of parts print the same for every plain one."""
        asked, other = (self.render([Message("user", text)], True) for text in (_PROBE, "another question"))
        if asked == other:
            raise TuneError(
                "The chat template of this model does not show a plain question.",
                "Choose a model for text; this one may be made for pictures.",
            )

    def _carries_system(self) -> bool:
        """True when a system text shows in a prompt, in one exchange and in two."""
        system, user, answer = Message("system", _PROBE), Message("user", "u"), Message("assistant", "a")
        try:
            return all(
                _PROBE in self.render([system, user, *rest], not rest)
                for rest in ([], [answer], [answer, user, answer])
            )
        except TuneError:
            return False

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: str = ""
    ) -> str:
        """The text of a conversation; `TuneError` when the template refuses it.

        `tools` is the JSON text of the list of tools, as `Row` holds it. Mere text (a lone message of the
        role `text`) stands without a template, after the token of the beginning where the model has one.
        """
        if messages and messages[0].role == "text":
            return self.begin_text + messages[0].content
        return self._template.render([_turn(m) for m in messages], add_generation_prompt, _tools(tools))

    @property
    def config(self) -> Path:
        """The folder of the config files that name the ending and padding ids."""
        return self._config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself, set to neither cut, pad nor add tokens."""
        return self._tokenizer

    def encode(self, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Token ids and each token's (start, end) in `text` by character; no token is added."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return tuple(encoding.ids), tuple(encoding.offsets)

    def encode_rendered(self, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """As `encode`, for a rendered conversation: what begins all of them is encoded only once."""
        head, ids, offsets = self._head
        if not head or not text.startswith(head):
            return self.encode(text)
        size = len(head)
        rest, places = self.encode(text[size:])
        return ids + rest, (*offsets, *[(start + size, end + size) for start, end in places])

    @cached_property
    def _head(self) -> tuple[str, tuple[int, ...], tuple[tuple[int, int], ...]]:
        """The common beginning of all conversations up to a special token, where it is long enough to pay.

        Tokens never reach over a special token; that is tried all the same.
        """
        asked, other = (self.render([Message("user", text)], True) for text in (_PROBE, "another question"))
        common = common_prefix(asked, other)
        ids, offsets = self.encode(asked)
        starts = [start for i, (start, _) in zip(ids, offsets, strict=True) if i in self.special_tokens]
        size = max((start for start in starts if start < common), default=0)
        head = self.encode(asked[:size])
        whole = head[0] + self.encode(asked[size:])[0] == ids
        return (asked[:size], *head) if whole and size >= LONG_HEAD else ("", (), ())

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of token ids, special tokens included unless `skip_special`."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def prompt_ids(self, messages: Sequence[Message], tools: str = "") -> tuple[int, ...]:
        """The ids after which the model writes its answer; `TuneError` where nothing is asked."""
        if not messages:
            raise TuneError("This row asks nothing.", "It can be learned from; there is nothing to answer.")
        return self.encode(self.render(messages, add_generation_prompt=True, tools=tools))[0]

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: those configured, the tokenizer's eos, and end tokens of the template.

        Where the template prints none of these, its answers end with the token that begins the next turn.
        """
        ids = set(tokenizer_files.configured_id(self._config, "eos_token_id"))
        texts = [text for text in END_TOKENS if text in self.original] + [self.eos_token or ""]
        ids.update(self._id(text) for text in texts if self._id(text) >= 0)
        gap = self._gap
        if not any(token in gap for i in ids if (token := self._tokenizer.id_to_token(i))):
            first = self.encode(gap)[0][:1]
            ids.update(i for i in first if i in self.special_tokens)
        return frozenset(i for i in ids if i < self.vocabulary_size)

    @cached_property
    def _gap(self) -> str:
        """What the template prints between an answer and the next question."""
        answer, question = f"{_PROBE}a", f"{_PROBE}u"
        talk = [Message("user", "q"), Message("assistant", answer), Message("user", question)]
        try:
            return self.render(talk).partition(answer)[2].partition(question)[0].lstrip()
        except TuneError:
            return ""

    @cached_property
    def stop_texts(self) -> tuple[str, ...]:
        """The stop ids as texts, longest first."""
        texts = {self._tokenizer.id_to_token(i) for i in self.stop_ids}
        return tuple(sorted((text for text in texts if text), key=len, reverse=True))

    @cached_property
    def stop_pattern(self) -> re.Pattern[str]:
        """Matches any of the stop texts; nothing where there is none."""
        return re.compile("|".join(map(re.escape, self.stop_texts)) or r"(?!)")

    @cached_property
    def added_tokens(self) -> dict[int, AddedToken]:
        """Tokens that are looked for in text before anything else, by id."""
        return dict(self._tokenizer.get_added_tokens_decoder())

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """Special tokens by id: texts that become one token wherever they stand."""
        return {number: token.content for number, token in self.added_tokens.items() if token.special}

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
        """One more than the largest token id; there may be ids without a token below it."""
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1

    @cached_property
    def begin_text(self) -> str:
        """The token of the beginning where the template begins every conversation with it, else nothing."""
        bos = self.bos_token or ""
        return bos if self.render([Message("user", "q")]).startswith(bos) else ""

    @cached_property
    def answer_headers(self) -> tuple[str, ...]:
        """What the template adds to a question to ask for an answer, and its parts up to a special token."""
        question = [Message("user", "q")]
        asked, bare = self.render(question, add_generation_prompt=True), self.render(question)
        header = asked[len(bare) :] if asked.startswith(bare) else ""
        ends = [end for i, (_, end) in zip(*self.encode(header), strict=True) if i in self.special_tokens]
        return tuple(header[:end] for end in (len(header), *reversed(ends)) if end)

    @cached_property
    def rewrites_history(self) -> bool:
        """Whether the template prints an answer otherwise once another turn follows."""
        question, answer = Message("user", "q"), Message("assistant", _PROBE)
        try:
            end = (alone := self.render([question, answer])).index(_PROBE) + len(_PROBE)
            return not self.render([question, answer, question, answer]).startswith(alone[:end])
        except (TuneError, ValueError):
            return False

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template has a place for the list of tools."""
        tool = {
            "type": "function",
            "function": {"name": _PROBE, "description": "d", "parameters": _NO_PARAMETERS},
        }
        try:
            return _PROBE in self.render([Message("user", "q")], True, json.dumps([tool]))
        except TuneError:
            return False

    def _id(self, text: str) -> int:
        found = self._tokenizer.token_to_id(text) if text else None
        return -1 if found is None else found


def _turn(message: Message) -> dict[str, Any]:
    """A message as transformers hands it to a template: gpt-oss reads the thoughts under another name."""
    if not message.reasoning and not message.tool_calls:
        return message.as_dict()
    try:
        turn = message.as_dict()
    except (ValueError, RecursionError) as error:
        raise TuneError("The arguments of a tool call are no JSON.", "Mend the row.") from error
    return {"thinking": message.reasoning} | turn if message.reasoning else turn


@lru_cache(maxsize=64)
def _tools(text: str) -> list[Any] | None:
    """The list of tools, None without any: what transformers gives a template then."""
    if not text:
        return None
    try:
        tools = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TuneError("The tools of a row are no JSON.", "Mend the row.") from error
    return tools if isinstance(tools, list) else [tools]


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
