"""Step 4: how the model is trained: recommended values, each with its reason, all of them editable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from ollama_tune.core.errors import UsageError
from ollama_tune.core.plan.stopping import metric_obstacle
from ollama_tune.core.text import visible
from ollama_tune.tui.fields import FIELDS, FIRST, MORE, check, text_of, value_of
from ollama_tune.tui.screens.base import StepScreen
from ollama_tune.tui.state import Facts
from ollama_tune.tui.widgets.errors import sentence
from ollama_tune.tui.widgets.form import WHY, FieldRow, Form
from ollama_tune.tui.widgets.membar import MemoryBar

RATE = "training.learning_rate"
HINT = "F2 (or m) shows more: rank, schedule, seeds and the rest."


class SettingsScreen(StepScreen):
    """A form over the plan. A good value is taken while it is typed, and memory and time follow at once;
    a bad one is only complained about when the field is left or Enter is pressed."""

    STEP = 4
    CSS_PATH = "settings.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "restore", "Recommended"),
        Binding("f4", "restore_all", "All recommended"),
        Binding("f2,m", "more", "More"),
        Binding("f6", "rates", "Try learning rates"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._pending: dict[str, Any] = {}

    def body(self) -> ComposeResult:
        """The form, and the estimates below it."""
        yield Static(id="waiting", markup=False)
        with Form(id="form"):
            for field in FIRST:
                yield FieldRow(field)
            yield Static(HINT, id="more-hint", classes="closed")
        yield MemoryBar(id="memory")

    def on_mount(self) -> None:
        """The first field has the focus; `More` opens by itself when something there was changed."""
        super().on_mount()
        if any(field.path in self.tune.answers.changed for field in MORE):
            self.call_after_refresh(self._open_more)

    def _rows(self) -> Iterator[FieldRow]:
        yield from self.query(FieldRow)

    def facts_changed(self, facts: Facts) -> None:
        """Values, reasons, marks and estimates follow the plan."""
        self._show_waiting(facts)
        self.query_one("#memory", MemoryBar).show(facts.plan)
        if facts.plan is None:
            return
        for row in self._rows():
            self._show_row(row, facts)
        if self.focused is None:
            next(self._rows()).editor.focus()

    def _show_waiting(self, facts: Facts) -> None:
        waiting = self.query_one("#waiting", Static)
        error = facts.plan_error or facts.model_error or facts.data_error
        if error is not None:
            waiting.update(sentence(error))
        elif facts.plan is None:
            waiting.update(Content(visible(next(iter(facts.busy.values()), ""))))
        waiting.display = error is not None or facts.plan is None
        self.query_one("#form").display = facts.plan is not None

    def _show_row(self, row: FieldRow, facts: Facts) -> None:
        assert facts.plan is not None
        path, value = row.field.path, facts.plan.settings.get(row.field.path)
        if path not in self._pending and not row.error:
            row.show_value(value)
        choice, recommended = facts.plan.choices.get(path), facts.recommended.get(path)
        if choice is not None:
            row.tell(choice.reason, source=choice.source)
        elif recommended is not None:
            same = recommended.value == value
            words = "" if same else text_of(row.field, recommended.value) or "none"
            why = recommended.reason if same else f"{WHY}{recommended.reason}"
            row.tell(self._obstacle(path, value, facts) or why, words)

    @staticmethod
    def _obstacle(path: str, value: Any, facts: Facts) -> str:
        """Why a value of the person's cannot be had of these rows."""
        lengths = facts.lengths if path == "training.early_stopping_metric" else None
        found = metric_obstacle(value, lengths.kind) if lengths is not None else None
        return f"✗ {found[0].partition(', which ')[2]}" if found else ""

    @on(FieldRow.Edited)
    def _edited(self, event: FieldRow.Edited) -> None:
        """Take a good value at once; keep a bad one for when the field is left."""
        row, plan = event.row, self.tune.facts.plan
        if plan is None:
            return
        value = value_of(row.field, event.value) if isinstance(event.value, str) else event.value
        try:
            checked = check(plan, row.field, value)
        except UsageError:
            self._pending[row.field.path] = value
            self.refresh_bindings()
            return
        self._pending.pop(row.field.path, None)
        row.complain("")
        if checked != plan.settings.get(row.field.path):
            self.tune.set_value(row.field.path, checked)
        self.refresh_bindings()

    @on(FieldRow.Left)
    def _left(self, event: FieldRow.Left) -> None:
        self._judge(event.row)

    def _judge(self, row: FieldRow) -> bool:
        """Complain about a bad value below its field; True when the value is good."""
        path, plan = row.field.path, self.tune.facts.plan
        if path not in self._pending or plan is None:
            return True
        try:
            check(plan, row.field, self._pending[path])
        except UsageError as error:
            row.complain(error.what)
            self.refresh_bindings()
            return False
        return True

    def leaving(self) -> None:
        """Judge what was typed last."""
        bad = [row for row in self._rows() if not self._judge(row)]
        if bad:
            bad[0].editor.focus()

    def obstacle(self) -> str:
        """A wrong value, or that there can be no plan; one that is still being made is no hindrance."""
        facts = self.tune.facts
        if facts.plan is None and not facts.busy:
            return "There is no plan: see above."
        wrong = [row.field.label for row in self._rows() if row.error]
        return f"Mend this first: {', '.join(wrong)}." if wrong else ""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The keys that take recommended values show where something differs from them."""
        if action == "restore":
            row = self._focused_row()
            return row is not None and row.field.path in self._mine()
        if action == "restore_all":
            return bool(self._mine())
        return super().check_action(action, parameters)

    def _mine(self) -> set[str]:
        """The fields that were changed, or that hold something that is not allowed."""
        return self._pending.keys() | (self.tune.answers.changed.keys() & FIELDS.keys())

    def action_restore(self) -> None:
        """Take the recommended value of the focused field again."""
        row = self._focused_row()
        if row is not None:
            self._forget(row)
            self.tune.restore_value(row.field.path)

    def action_restore_all(self) -> None:
        """Take the recommended value of every field again."""
        for row in self._rows():
            self._forget(row)
        self.tune.restore_all()
        self.tune.save_soon()

    def action_rates(self) -> None:
        """Try three learning rates on short runs, in a window."""
        from ollama_tune.tui.screens.rates import open_rates

        open_rates(self.tune, self._took_rate)

    def _took_rate(self, rate: float) -> None:
        """Put the rate that was taken into its field, whatever was typed there."""
        row = next(row for row in self._rows() if row.field.path == RATE)
        self._pending.pop(RATE, None)
        row.complain("")
        row.put(text_of(row.field, rate))

    def _forget(self, row: FieldRow) -> None:
        """Put the recommended value into a field, where it is known already, and complain no more."""
        path, plan = row.field.path, self.tune.facts.plan
        self._pending.pop(path, None)
        row.complain("")
        recommended = self.tune.facts.recommended.get(path)
        value = recommended.value if recommended else plan.settings.get(path) if plan else None
        row.put(text_of(row.field, value))
        row.show_value(value)

    def _focused_row(self) -> FieldRow | None:
        return next((row for row in self._rows() if row.editor.has_focus), None)

    async def action_more(self) -> None:
        """Show or hide the fields that few need."""
        if not self.query("FieldRow.more"):
            await self._open_more()
            self.query("FieldRow.more").first(FieldRow).editor.focus()
            return
        inside = (row := self._focused_row()) is not None and row.has_class("more")
        self._hint(HINT, closed=True)
        await self.query("FieldRow.more").remove()
        if inside or self.focused is None:
            list(self._rows())[-1].editor.focus()

    async def _open_more(self) -> None:
        self._hint("More (F2 or m hides it again)", closed=False)
        await self.query_one("#form").mount_all([FieldRow(field, classes="more") for field in MORE])
        self.facts_changed(self.tune.facts)

    def _hint(self, words: str, *, closed: bool) -> None:
        hint = self.query_one("#more-hint", Static)
        hint.update(words)
        hint.set_class(closed, "closed")

    def help_topic(self) -> tuple[str, str]:
        """The help of the focused field."""
        row = self._focused_row()
        if row is None:
            return super().help_topic()
        section, _, name = row.field.path.partition(".")
        return section, name
