"""Answers by the fast path: prompts laid end to end, then one token a step for all rows that still write.

The newest tokens of all rows stand in one column of the cache, so a row begins behind its own number of empty
columns. Rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch

from ollama_tune.core.data.values import Example
from ollama_tune.core.plan.answers import fast_rows
from ollama_tune.core.train.fast.attention import Rule
from ollama_tune.core.train.fast.layers import Pass
from ollama_tune.core.train.fast.model import CHUNK
from ollama_tune.core.train.fast.products import even
from ollama_tune.core.train.fast.rotary import Rotary
from ollama_tune.core.train.fast.stream import Segment, Stream, lay_stream
from ollama_tune.core.train.path import Choose

if TYPE_CHECKING:
    from ollama_tune.core.train.fast.model import FastModel

Ids = Sequence[int]
ROOM = 64
"""Columns that the cache grows by."""
LEAVE = 0.25
"""Share of rows that have ended at which the cache is copied without them."""


class Cache:
    """Turned keys and values of rows: for each layer rows x key heads x columns x width, empty ones first."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.columns = max(lengths)
        self.starts = [self.columns - length for length in lengths]
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._mask: torch.Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [self.columns - start for start in self.starts]

    def add_layer(self, rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Add a layer: of each row the keys and values, key heads x tokens (or more) x width."""
        heads, _, width = rows[0][0].shape
        shape = (len(rows), heads, self.columns + ROOM, width)
        made = rows[0][0].new_zeros(shape), rows[0][0].new_zeros(shape)
        for number, row in enumerate(rows):
            start = self.starts[number]
            for place, part in zip(made, row, strict=True):
                place[number, :, start : self.columns] = part[:, : self.columns - start]
        self._layers.append(made)

    def open(self) -> None:
        """Make the column of the next token."""
        keys = self._layers[0][0]
        if self.columns == keys.shape[2]:
            self._layers = [(_wider(keys), _wider(values)) for keys, values in self._layers]
            self._mask = None
        self.columns += 1

    def put(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write the newest token's keys and values, rows x key heads x width."""
        keys, values = self._layers[layer]
        keys[:, :, self.columns - 1] = key
        values[:, :, self.columns - 1] = value

    def seen(self, layer: int, window: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The keys and values that the newest tokens attend to, and minus infinity at the empty columns."""
        first = max(0, self.columns - window) if window else 0
        here = slice(first, self.columns)
        keys, values = self._layers[layer]
        return keys[:, :, here], values[:, :, here], self._empty(here)

    def _empty(self, here: slice) -> torch.Tensor | None:
        if max(self.starts) <= here.start:
            return None
        if self._mask is None:
            keys = self._layers[0][0]
            columns = torch.arange(keys.shape[2], device=keys.device)
            empty = columns < torch.tensor(self.starts, device=keys.device)[:, None]
            mask = torch.zeros(empty.shape, dtype=keys.dtype, device=keys.device)
            self._mask = mask.masked_fill_(empty, float("-inf"))[:, None, None]
        return self._mask[..., here]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, and without columns that are empty in all of them."""
        starts = [self.starts[row] for row in rows]
        first = min(starts)
        index = torch.tensor(rows, device=self._layers[0][0].device)
        self._layers = [(k[index, :, first:], v[index, :, first:]) for k, v in self._layers]
        self.starts = [start - first for start in starts]
        self.columns -= first
        self._mask = None


def _wider(states: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, 0, max(ROOM, states.shape[2] // 2)))


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, rule: Rule
) -> torch.Tensor:
    """One query a row (rows x heads x width) over its keys and values; rows x (heads * width).

    The query heads that share a key head stand where torch expects queries one after the other; for 16-bit
    numbers on the CPU it is faster to let torch repeat the keys.
    """
    rows, heads, width = query.shape
    if rule.cap:
        return _attend_capped(query.view(rows, -1, rule.shared, width), keys, values, mask, rule)
    grouped = query.is_cpu and query.dtype != torch.float32
    shape = (rows, heads, 1, width) if grouped else (rows, rule.key_value_heads, rule.shared, width)
    made = torch.nn.functional.scaled_dot_product_attention(
        query.view(shape), keys, values, attn_mask=mask, scale=rule.scale, enable_gqa=grouped
    )
    return made.reshape(rows, heads * width)


def _attend_capped(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, rule: Rule
) -> torch.Tensor:
    products = (query @ keys.transpose(-1, -2)).mul_(rule.scale / rule.cap).tanh_().mul_(rule.cap)
    shares = (products if mask is None else products + mask).softmax(-1, dtype=torch.float32)
    return (shares.to(values.dtype) @ values).reshape(len(query), -1)


class _NewestToken:
    """The attention of one layer (in the place of `RowsAttention`) where each row has one token more."""

    def __init__(self, layer: int, rule: Rule, rotary: Rotary | None, cache: Cache, turns: _Turns) -> None:
        self._layer, self._rule, self._rotary = layer, rule, rotary
        self._cache, self._turns = cache, turns

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, keep: bool
    ) -> tuple[torch.Tensor, None]:
        """Write keys and values (rows x heads * width) to the cache, and attend to what stands there."""
        rule, rows = self._rule, len(query)
        turned = torch.cat([query, key], 1)
        if self._rotary is not None:
            self._rotary.turn(turned, self._turns.of(self._rotary))
        query, key = torch.split(turned, [query.shape[1], key.shape[1]], 1)
        shape = (rows, rule.key_value_heads, rule.head_dim)
        self._cache.put(self._layer, key.reshape(shape), value.reshape(shape))
        query = query.reshape(rows, rule.heads, rule.head_dim)
        return attend(query, *self._cache.seen(self._layer, rule.window), rule), None


class _Turns:
    """Cosines and sines at the rows' newest positions, looked up once a step for all layers."""

    def __init__(self, lengths: Sequence[int], heads: int, device: torch.device) -> None:
        self._longest, self._heads = max(lengths), heads
        self._positions = torch.tensor(lengths, device=device) - 1
        self._known: dict[Rotary, list[torch.Tensor]] = {}

    def of(self, rotary: Rotary) -> list[torch.Tensor]:
        """Tables (rows x heads * width) of one encoding."""
        if rotary not in self._known:
            tables = rotary.tables(0, self._longest, self._heads, self._longest)
            self._known[rotary] = [table.index_select(0, self._positions) for table in tables]
        return self._known[rotary]


class FastEngine:
    """Writes answers with a `FastModel`, with its adapter or without; see `core/train/path.py`'s `Engine`."""

    def __init__(self, model: FastModel) -> None:
        self._model = model
        self._device = model.weights.embedding.device

    @property
    def rows(self) -> int:
        """Prompts that are well answered at once: the weights are read once a token for all of them."""
        sizes = self._model.blueprint
        return fast_rows(sizes.layers, sizes.key_width, self._model.weights.embedding.itemsize)

    @torch.no_grad()
    def logits(self, ids: Ids, positions: Sequence[int], *, tuned: bool) -> torch.Tensor:
        """float32 logits (positions x vocabulary) of the token after each position."""
        tokens = torch.tensor(list(ids), device=self._device)
        places = torch.tensor(list(positions), device=self._device)
        segments = (Segment(0, len(tokens)),)
        stream = Stream(tokens, torch.arange(len(tokens)), segments, places, places, len(tokens), len(places))
        return self._model.logits(self._read(stream, tuned))

    @torch.no_grad()
    def likelihoods(self, examples: Sequence[Example], *, tuned: bool) -> list[float]:
        """Of each row the natural log of the probability of its supervised tokens, summed."""
        stream = lay_stream(examples, str(self._device))
        hidden = self._read(stream, tuned)
        logs: list[float] = []
        for part in range(0, len(stream.targets), CHUNK):
            logits = self._model.logits(hidden[part : part + CHUNK])
            chosen = logits.gather(-1, stream.targets[part : part + CHUNK, None])[:, 0]
            logs += (chosen - logits.logsumexp(-1)).tolist()
        ends = list(accumulate((sum(example.trained[1:]) for example in examples), initial=0))
        return [sum(logs[start:end]) for start, end in pairwise(ends)]

    @torch.no_grad()
    def decode(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        *,
        tuned: bool,
        stop_ids: Ids,
        choose: Choose | None = None,
        stopped: Callable[[], bool] = lambda: False,
        on_tokens: Callable[[Ids], None] | None = None,
    ) -> list[list[int]]:
        """The tokens after each prompt, up to a stop token, which is included, or the limit."""
        answers: list[list[int]] = [[] for _ in prompts]
        stop, rows = frozenset(stop_ids), list(range(len(prompts)))
        if max_new_tokens < 1 or not rows:
            return answers
        hidden, cache = self._begin(prompts, tuned)
        ended: set[int] = set()
        while True:
            tokens = (choose or _likeliest)(self._model.logits(hidden))
            written = [
                (row, token) for row, token in zip(rows, tokens.tolist(), strict=True) if row not in ended
            ]
            for row, token in written:
                answers[row].append(token)
            if on_tokens is not None:
                on_tokens([token for _, token in written])
            ended |= {row for row, token in written if token in stop or len(answers[row]) == max_new_tokens}
            live = [place for place, row in enumerate(rows) if row not in ended]
            if not live or stopped():
                return answers
            if len(rows) - len(live) >= LEAVE * len(rows):
                cache.keep(live)
                tokens, rows = tokens[live], [rows[place] for place in live]
            if self._turns_anew(cache):
                hidden, cache = self._begin([[*prompts[row], *answers[row]] for row in rows], tuned)
            else:
                hidden = self._step(tokens, cache, tuned)

    def _turns_anew(self, cache: Cache) -> bool:
        """Whether the next token is the first for which longrope turns all tokens by other factors."""
        ropes = (rope for rope in self._model.blueprint.ropes if rope.long)
        return any(max(cache.lengths) == rope.original for rope in ropes)

    def _begin(self, prompts: Sequence[Ids], tuned: bool) -> tuple[torch.Tensor, Cache]:
        """Read the prompts; the hidden states after each, and the cache to go on from."""
        stream = _lay(prompts, str(self._device))
        cache = Cache([len(prompt) for prompt in prompts])
        return self._read(stream, tuned, cache), cache

    def _read(self, stream: Stream, tuned: bool, cache: Cache | None = None) -> torch.Tensor:
        """Normed hidden states at the picked places; the keys and values of the rows go to the cache."""
        model, openings = self._model, {segment.prefix for segment in stream.segments}
        model.refresh()
        count, stream = len(stream.picked), even(stream, model.weights.embedding)
        states = model.embed(stream.ids)
        for number, layer in enumerate(model.layers):
            last = number == len(model.layers) - 1
            run = Pass(stream.segments, tuned, keep=False, picked=stream.picked if last else None)
            states, kept = layer.forward(states, run)
            if cache is not None:
                rows = [row for place, row in enumerate(kept.rows) if place not in openings]
                cache.add_layer([(row.key, row.value) for row in rows])
        return model.normed(states)[:count]

    def _step(self, tokens: torch.Tensor, cache: Cache, tuned: bool) -> torch.Tensor:
        """Normed hidden states of each row after one token more."""
        model = self._model
        cache.open()
        sizes = model.blueprint
        turns = _Turns(cache.lengths, sizes.heads + sizes.key_value_heads, self._device)
        states = model.embed(tokens)
        for number, layer in enumerate(model.layers):
            own = layer.attention
            newest = _NewestToken(number, own.rule, own.rotary, cache, turns)
            states, _ = layer.forward(states, Pass((), tuned, keep=False, attention=newest))
        return model.normed(states)


def _lay(prompts: Sequence[Ids], device: str) -> Stream:
    """Prompts as rows of which only the token after the last is asked for; a common opening is read once."""
    rows = [
        Example("", (*prompt, 0), (*[False] * len(prompt), True), ((0, 0),) * (len(prompt) + 1))
        for prompt in prompts
    ]
    return lay_stream(rows, device)


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)
