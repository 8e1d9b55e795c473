"""The figure that decides which state is best where the loss does not: of answers, or of likely labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.values import Row
from ollama_tune.core.evaluate.figures import Metric, chosen_metrics
from ollama_tune.core.evaluate.material import Model, Rows, Tasks
from ollama_tune.core.evaluate.measuring import Measuring
from ollama_tune.core.evaluate.records import statistics
from ollama_tune.core.models.tokenizer_files import read_json
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.settings import Settings
from ollama_tune.core.plan.stopping import SCORED_ROWS, require_metric
from ollama_tune.core.train.measure import Held
from ollama_tune.core.train.session import Session

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.generate import Generator
    from ollama_tune.core.train.path import Engine


class Questions:
    """The held-out rows that are scored, and the metric; made before the model is loaded.

    Raises `TuneError` where the metric cannot be had of these rows, or its package is missing.
    """

    def __init__(
        self,
        settings: Settings,
        rows: Sequence[Row],
        labels: Sequence[str],
        chat: ChatFormat,
        context: int | None,
    ) -> None:
        wanted = settings.training.early_stopping_metric
        require_metric(wanted)
        self.rows = Rows(tuple(rows[:SCORED_ROWS]), len(rows), settings.data.path, tuple(labels))
        ((self.metric,), _) = chosen_metrics([wanted], self.rows.references, bool(labels))
        model = Model(chat, context, settings.training.sequence_length, settings.evaluation.max_new_tokens)
        self.tasks: Tasks = model.tasks(self.rows, {self.metric.kind})


def questions_of(
    session: Session, chat: ChatFormat, spec: ModelSpec, held: Held, labels: Sequence[str]
) -> Questions | None:
    """What decides which state of a run is best, where the held-out loss does not."""
    if session.settings.training.early_stopping_metric == "loss" or not held.rows:
        return None
    context = (read_json(spec.folder / "config.json") or {}).get("max_position_embeddings")
    return Questions(session.settings, held.rows, labels, chat, context)


class Scorer:
    """Scores the model as it is now, always on the same questions in the same batches."""

    def __init__(self, session: Session, questions: Questions, engine: Engine, generator: Generator) -> None:
        self._session, self._questions = session, questions
        self._measuring = Measuring(engine, generator, session.stopped)
        self._group: dict[str, Any] = {
            "kind": questions.metric.kind,
            "tuned": True,
            "tasks": [task.request(str(task.row)) for task in questions.tasks.tasks],
        }

    @property
    def metric(self) -> Metric:
        """What is computed."""
        return self._questions.metric

    @property
    def rows(self) -> int:
        """How many questions are asked."""
        return len(self._group["tasks"])

    def score(self) -> float | None:
        """The metric of all questions; None where there are none. Raises `Stopped` when the run shall end."""
        found: dict[str, dict[str, Any]] = {}

        def take(message: dict[str, Any]) -> None:
            found.update({record["key"]: record for record in message.get("records", ())})

        self._measuring.group(self._group, take)
        self._session.check_stop()
        if not found:
            return None
        order = sorted(found, key=int)
        rows = [self._questions.rows.rows[int(key)] for key in order]
        records = [found[key] for key in order]
        table = statistics(self.metric, records, rows, self._questions.rows.labels)
        return float(self.metric.value(table.sum(0, keepdims=True))[0])
