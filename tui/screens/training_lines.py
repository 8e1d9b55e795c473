"""The sentences and figures of the training screen, made from a view of the run."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.content import Content

from ollama_tune.core.text import human_count, human_seconds
from ollama_tune.tui.run_view import RunView
from ollama_tune.tui.screens.run_screen import BAR, working
from ollama_tune.tui.widgets.bar import level

if TYPE_CHECKING:
    from ollama_tune.tui.coach import Advice

DOTS = 6
"""The most evaluations that are shown as dots."""
OWN_PATHS = ("fast", "general")

NOT_YET = "known after two steps"
SIGN_STYLES = {"✓": "$text-success", "!": "$text-warning", "✗": "$text-error"}

Pair = tuple[str, str]


@dataclass(frozen=True)
class Sparks:
    """The courses of the gradient's norm and of the learning rate; empty where there is no room."""

    norm: str = ""
    rate: str = ""


def running(view: RunView, now: float) -> Content:
    """What a live worker does: the share of the steps, or the phase before and after them."""
    if not view.training or view.progress or view.step >= view.total_steps:
        return working(view, now)
    share = view.step / max(view.total_steps, 1)
    count = f"step {view.step:,} of {view.total_steps:,}"
    return Content.assemble(("Training  ", "bold"), level(share, BAR), f" {share:>4.0%}  {count}")


def finished(view: RunView, width: int) -> Content:
    """The end and what it brought; where there is no room for both, what it brought."""
    early = view.step < view.total_steps
    steps = f"after {view.step:,}{f' of {view.total_steps:,}' if early else ''} steps"
    sign = (f"✓ Finished{' early' if early else ''}", "bold $text-success")
    words = Content.assemble(sign, f" {steps}. ")
    if view.before is None or view.after is None:
        return Content.assemble(words, "Enter goes on to Try it.")
    brought = Content.assemble(
        f"Exact answers: {view.before:.1%} before, ", (f"{view.after:.1%} after", "bold"), "."
    )
    fits = words.cell_length + brought.cell_length <= width
    return (words if fits else Content.assemble(sign, ". ")) + brought


def figures(view: RunView, now: float, *, going: bool, sparks: Sparks) -> list[Content]:
    """Six lines: losses and speed, gradient and rate, time, what is safe, what is best, and the path."""
    if not view.step:
        rows = f"{view.train_rows:,} rows to learn from, {view.validation_rows:,} held out"
        lines = [Content.styled(rows if view.train_rows else "", "dim"), _times(view, now, going=going)]
        return [*lines, _path(view)]
    lines = [_losses(view), _course(view, sparks), _times(view, now, going=going)]
    return [*lines, _safe(view, now, going=going), _best(view), _path(view)]


def coach(advice: Advice | None) -> Content:
    """What the curves mean now, and what to do."""
    if advice is None:
        return Content("")
    sign = (f"{advice.sign} ", f"bold {SIGN_STYLES.get(advice.sign, '')}".strip())
    return Content.assemble(sign, (advice.sentence, "bold"), f" {advice.advice}")


def _losses(view: RunView) -> Content:
    pairs = [
        ("loss", _figure(view.loss)),
        ("held-out", _figure(view.validation_loss)),
        ("tokens/s", "–" if view.tokens_per_second is None else human_count(view.tokens_per_second)),
    ]
    if view.scored is not None:
        pairs.insert(2, (view.scored.title, view.scored.words(view.scored.score)))
    if view.preferred is not None:
        pairs.insert(2, ("preferred", view.preferred.words))
    return _pairs([*pairs, ("MFU", f"{view.mfu:.0%}")] if view.mfu is not None else pairs)


def _course(view: RunView, sparks: Sparks) -> Content:
    norm = "not a number" if view.gradient_norm is None else f"{view.gradient_norm:.2f}"
    rate = "–" if view.learning_rate is None else f"{view.learning_rate:.1e}"
    return Content("   ").join(
        Content.assemble(
            (f"{name} ", "dim"), (figure, "bold"), (f" {course}" if course else "", "$text-primary")
        )
        for name, figure, course in (
            ("gradient norm", norm, sparks.norm),
            ("learning rate", rate, sparks.rate),
        )
    )


def _times(view: RunView, now: float, *, going: bool) -> Content:
    """Time spent, time left, when it ends; or that this is not known yet."""
    pairs = [("elapsed", human_seconds(view.elapsed))] if view.elapsed else []
    finish = view.finish_time
    if going and finish is not None:
        pairs += [("left", human_seconds(finish - now)), ("done at", _moment(finish, now))]
    elif going and not view.trained and view.stage == "train":
        pairs.append(("left", NOT_YET))
    return _pairs(pairs)


def _safe(view: RunView, now: float, *, going: bool) -> Content:
    """The last checkpoint and what a crash would cost now."""
    if view.checkpoints:
        last = view.checkpoints[-1]
        words = Content.assemble(("checkpoint ", "dim"), f"step {last.step:,}")
        words = Content.assemble(words, f", {human_seconds(now - last.t)} ago") if going else words
    else:
        words = Content.styled("no checkpoint yet", "dim")
    if view.trained or not view.unsaved:
        return words
    cost = "a crash now costs" if going else "to be done again"
    return Content.assemble(words, (f"   {cost} ", "dim"), (_steps(view.unsaved), "bold"))


def _best(view: RunView) -> Content:
    """The best state so far, and how many evaluations more may pass without a better one."""
    best, waits = view.best, view.patience
    if best is None:
        return Content.styled("no evaluation yet", "dim")
    point = view.validation.get(best.step)
    loss = f"{point.loss:.4f} at " if point is not None and point.loss is not None else ""
    if view.scored is not None:
        loss = f"{view.scored.title} {view.scored.words(view.scored.best)} at "
    words = Content.assemble(("best ", "dim"), (f"{loss}step {best.step:,}", "bold"))
    if waits is None or not waits.patience:
        return words
    waited = min(waits.waited, waits.patience)
    dots = f"{'●' * waited}{'○' * (waits.patience - waited)} " if waits.patience <= DOTS else ""
    style = "$text-warning" if waited else ""
    told = f"{waited} of {waits.patience} evaluations no better"
    return Content.assemble(words, "   ", (dots, style), (told, style or "dim"))


def _path(view: RunView) -> Content:
    """Which code computes the model, and why that one."""
    name = f"{view.path} path" if view.path in OWN_PATHS else view.path
    return Content.styled(f"{name}: {view.path_reason}" if view.path_reason else name, "dim")


def _figure(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


def _pairs(pairs: list[Pair]) -> Content:
    parts = [Content.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in pairs]
    return Content("   ").join(parts)


def _moment(when: float, now: float) -> str:
    moment = datetime.datetime.fromtimestamp(when)
    far = moment.date() != datetime.datetime.fromtimestamp(now).date()
    return f"{moment:%a %H:%M}" if far else f"{moment:%H:%M}"
