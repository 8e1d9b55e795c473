"""Single values that a viewer of a run holds: measurements, checkpoints, memory, lines of the log."""

from __future__ import annotations

from dataclasses import dataclass, field

from ollama_tune.core.plan.stopping import TITLES, score_words
from ollama_tune.core.runs.events import Event
from ollama_tune.core.text import one_line

ANSWERS = 400
"""The most answers that are kept of a question, the newest."""


@dataclass(frozen=True)
class ValidationPoint:
    """One measurement on the validation rows; `exact_match` from 0 to 1 where answers were written."""

    step: int
    loss: float | None
    exact_match: float | None


@dataclass(frozen=True)
class Said:
    """What the model answered at a step; `cut` where it was not let to its end."""

    step: int
    text: str
    cut: bool = False


@dataclass
class Asked:
    """A held-out question with the wanted answer, the base model's, and the tuned model's by step.

    `said` is in the order of the steps, `final` the answer of the finished adapter; None while not known.
    """

    prompt: str
    reference: str
    base: str | None = None
    said: list[Said] = field(default_factory=list)
    final: str | None = None

    def take(self, answer: Said) -> None:
        """Another answer; one at the same step is replaced."""
        self.back(answer.step - 1)
        self.said.append(answer)
        del self.said[:-ANSWERS]

    def back(self, step: int) -> None:
        """Forget the answers after a step: it is done again."""
        while self.said and self.said[-1].step > step:
            self.said.pop()


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is, in `unit` (bytes are `B`)."""

    name: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class Memory:
    """Memory of the device that trains, in bytes; `parts` of the peak as far as the worker knows them."""

    device: str
    used: int
    peak: int
    free: int
    total: int
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def others(self) -> int:
        """What is held besides the run: by other programs and, on a GPU, by the driver for this one."""
        return max(self.total - self.free - self.used, 0)


@dataclass(frozen=True)
class ProbeResult:
    """What the longest rows took when they were tried before the first step, in bytes.

    `limit` is what the run may use; 0 where it is not known.
    """

    predicted: int
    measured: int
    limit: int


@dataclass(frozen=True)
class Checkpoint:
    """A resumable state that the worker wrote at the Unix time `t`."""

    step: int
    bytes: int
    best: bool
    reason: str
    t: float


@dataclass(frozen=True)
class Patience:
    """Early stopping: evaluations without a better loss, after how many of them the run ends (0: never)."""

    waited: int
    patience: int


@dataclass(frozen=True)
class Scored:
    """What decides where the held-out loss does not: a metric, its newest and best figure, and where."""

    metric: str
    score: float
    best: float
    best_step: int

    @property
    def title(self) -> str:
        """The metric in words."""
        return TITLES.get(self.metric, self.metric)

    def words(self, score: float) -> str:
        """A figure of it."""
        return score_words(self.metric, score)

    @classmethod
    def of(cls, event: Event) -> Scored | None:
        """What an `evaluation` event says of it, if anything."""
        if event.get("score") is None:
            return None
        metric = one_line(str(event["metric"]), 20)
        return cls(metric, float(event["score"]), float(event["best_score"]), int(event["best_step"]))


@dataclass(frozen=True)
class Preferred:
    """How pairs of answers stand (DPO): the share whose better answer gained more, and by how much."""

    accuracy: float
    margin: float

    @property
    def words(self) -> str:
        """Both figures in a few words."""
        return f"{self.accuracy:.0%} of pairs (margin {self.margin:.2f})"

    @classmethod
    def of(cls, event: Event) -> Preferred | None:
        """What a `step` or `evaluation` event says of it, if anything."""
        accuracy, margin = event.get("reward_accuracy"), event.get("reward_margin")
        return None if accuracy is None or margin is None else cls(float(accuracy), float(margin))


@dataclass(frozen=True)
class LogLine:
    """One sentence of the log: Unix time, a sign (empty, `✓`, `!` or `✗`) and the text."""

    t: float
    sign: str
    text: str
