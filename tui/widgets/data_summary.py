"""What a data set is, in a few lines: rows, format, tokens, labels, and what was taken for granted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from ollama_tune.core.data.values import LENGTH_STEP
from ollama_tune.core.text import human_count, one_line, visible
from ollama_tune.tui.data_report import label_counts
from ollama_tune.tui.state import BUNDLED, Facts
from ollama_tune.tui.widgets.errors import sentence
from ollama_tune.tui.widgets.page import Line

if TYPE_CHECKING:
    from ollama_tune.core.data.values import DatasetProfile, Lengths

LABELS = 12
YOURS = "  These rows come with the tool. For yours type a file above, or press Ctrl+O."
MIXED = 0.05


def found_lines(facts: Facts) -> list[Line]:
    """The lines below the path."""
    if facts.data_error is not None:
        how = [Line(Content("  F2: say yourself what each column is."), 2)] if facts.columns else []
        return [Line(sentence(facts.data_error), 2), *how]
    if facts.profile is None:
        return [Line(Content(visible(facts.busy.get("data", ""))))]
    lines = [summary(facts.profile, facts.busy.get("data", "")), token_line(facts)]
    lines += [Content.styled(YOURS, "dim")] if facts.profile.source == BUNDLED else []
    lines += [label_line(facts.profile)] if facts.profile.labels else []
    lines += [script_line(facts.profile)] if _mixed(facts.profile) else []
    lines += [
        Content.assemble(
            ("? ", "$text-warning bold"),
            visible(question.text),
            " Taken: ",
            (visible(question.options[0].label), "bold"),
            (" – F3 changes it", "dim"),
        )
        for question in facts.profile.questions
    ]
    return [Line(content, 2) for content in lines]


def summary(profile: DatasetProfile, news: str) -> Content:
    """How many rows, and what they are."""
    words = f"{visible(profile.format)}, {visible(profile.schema)}, {visible(profile.encoding)}"
    if not profile.exact:
        rows = (f"about {profile.total:,} rows", "bold")
        told = f" · {visible(news)}" if news else ""
        return Content.assemble(("… ", "bold"), rows, f" · {words}", (told, "dim"))
    count = f"{profile.usable:,} row" + ("" if profile.usable == 1 else "s")
    count += f" of {profile.total:,}" if profile.total > profile.usable else ""
    return Content.assemble(("✓ ", "$text-success bold"), (count, "bold"), f" · {words}")


def token_line(facts: Facts) -> Content:
    """How long the rows are, how much is trained, and how many are too long."""
    if facts.lengths is not None:
        return _lengths(facts.lengths, facts)
    if facts.plan_error is not None:
        return sentence(facts.plan_error)
    if facts.model_error is not None:
        return Content.assemble(
            ("! ", "$text-warning bold"), "Tokens are counted once there is a model (step 2)."
        )
    return Content(visible(facts.busy.get("rows", facts.busy.get("model", ""))))


def _lengths(lengths: Lengths, facts: Facts) -> Content:
    about = "" if lengths.exact else "about "
    share = lengths.trained_tokens / max(lengths.tokens, 1)
    text = (
        f"  {about}{human_count(lengths.tokens)} tokens, {share:.0%} of them trained; "
        f"the usual row has {lengths.median:,}, the longest {lengths.longest:,}"
    )
    counting = facts.profile is not None and facts.profile.exact and not lengths.exact
    news = f". {visible(facts.busy.get('rows', ''))}" if counting else ""
    return Content.styled(text + _too_long(lengths, facts) + news.rstrip(". "), "dim")


def _too_long(lengths: Lengths, facts: Facts) -> str:
    """The share of rows that the sequence length leaves out."""
    if facts.plan is None:
        return ""
    limit = facts.plan.settings.training.sequence_length
    if lengths.longest <= limit:
        return f"; all fit into {limit:,}"
    over = share_over(lengths, limit)
    return f"; {over:.2%} are longer than {limit:,}" if over else f"; few exceed {limit:,}"


def share_over(lengths: Lengths, limit: int) -> float:
    """The share of rows of more than `limit` tokens; to the lower multiple of 64 where it is none."""
    over = sum(lengths.histogram[limit // LENGTH_STEP :])
    return over / max(sum(lengths.histogram), 1)


def label_line(profile: DatasetProfile) -> Content:
    """The labels of a classification with their rows, the most frequent first."""
    counted = sorted(label_counts(profile).items(), key=lambda entry: -entry[1])
    names = ", ".join(
        one_line(label, 24) + (f" ({count:,})" if count else "") for label, count in counted[:LABELS]
    )
    more = f" and {len(counted) - LABELS} more" if len(counted) > LABELS else ""
    return Content.assemble(f"  {len(counted)} labels: ", names, more)


def _mixed(profile: DatasetProfile) -> bool:
    """True where a second script is more than a few names."""
    return any(share >= MIXED for _, share in profile.scripts[1:])


def script_line(profile: DatasetProfile) -> Content:
    """Which scripts the texts are written in."""
    shares = ", ".join(f"{one_line(script, 20)} {share:.0%}" for script, share in profile.scripts[:6])
    return Content.styled(f"  scripts: {shares}", "dim")
