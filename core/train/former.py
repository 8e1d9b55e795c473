"""What the worker before this one left behind: an end without a word, and a checkpoint nobody was told of."""

from __future__ import annotations

from ollama_tune.core.runs.events import effective
from ollama_tune.core.train.checkpoint import Checkpoint
from ollama_tune.core.train.session import Session

LAST_WORDS = frozenset({"done", "stopped", "error"})


def tell_former_end(session: Session, found: Checkpoint | None) -> None:
    """Say so where the former worker was killed, and complete its log by the checkpoint that was found.

    A checkpoint is whole as soon as it has its name, an instant before the log can tell of it.
    """
    events = [event for event in effective(session.history) if event.kind != "memory"]
    if not events:
        return
    step = max((event["step"] for event in events if event.kind == "step"), default=0)
    place = "the beginning, for there was no checkpoint yet" if found is None else f"step {found.state.step}"
    if events[-1].kind not in LAST_WORDS and not session.takes_over:
        session.warn(
            f"The worker before this one ended without a word after step {step}: it was killed, or the "
            "computer went off.",
            f"Nothing has to be done: the run goes on from {place}, and no step is lost or counted twice.",
        )
    if found is None or any(e.kind == "checkpoint" and e["step"] == found.state.step for e in events):
        return
    session.emit(
        "checkpoint",
        step=found.state.step,
        folder=found.path.relative_to(session.folder.path).as_posix(),
        bytes=sum(file.stat().st_size for file in found.path.iterdir()),
        best=found.state.best_step == found.state.step,
        reason="found",
    )
