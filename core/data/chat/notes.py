"""What the preview says about how a chat template treats a row: one sentence for each kind of note."""

from __future__ import annotations

NOTES = {
    "drops-thinking:history": "The chat template leaves out the thoughts of earlier answers, as in use.",
    "drops-thinking:last": "The chat template leaves out the thoughts before the last answer, so they are "
    "not learned.",
    "drops-role:system": "The chat template leaves a system text out, so the model never sees it.",
    "drops-role:user": "The chat template leaves a question out, so the model never sees it.",
    "drops-role:tool": "The chat template leaves the result of a tool out, so the model never sees it.",
    "drops-tools": "The chat template has no place for the list of tools, so the model never sees it.",
    "drops-tool-calls": "The chat template leaves the call of a tool out, so that is not learned.",
    "drops-text-of-tool-call-turn": "The chat template leaves out what an answer says beside the call of a "
    "tool, so that is not learned.",
    "prompt-longer": "In use the chat template begins the answer itself; that beginning stands here too, "
    "read and not learned.",
    "prompt-differs": "In use the chat template prompts otherwise than in training, which may cost quality.",
    "history-rewritten": "The chat template changes an answer once another turn follows; such an answer is "
    "learned in a sample of its own where its text would be lost.",
    "interleaved": "The chat template puts the result of a tool inside an answer; only the parts that the "
    "model writes are learned.",
    "eot-appended": "The chat template does not end the last answer, so an end token was added.",
    "no-eot": "An answer has no end token, so the model does not learn to stop there.",
    "system-merged": "The chat template drops system texts; they go before the question.",
    "text-only": "This is text without a question: all of it is learned, and an end token closes it.",
}
"""Every kind of note with its sentence, in the order in which they are shown."""


def in_order(notes: frozenset[str]) -> list[str]:
    """The kinds of notes in the order of the table."""
    return [kind for kind in NOTES if kind in notes]
