"""Step 8 in plain lines: the tuned model as one file, proved and put into Ollama."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from ollama_tune.core.errors import TuneError
from ollama_tune.core.plan.settings import ExportSettings, GgufType
from ollama_tune.core.runs.folder import RunFolder, State
from ollama_tune.core.text import human_bytes, one_line, visible
from ollama_tune.tui.exporting import Look, ask_ollama, begin_export, look, refusal, replaces
from ollama_tune.tui.fields import EXPORT_MORE
from ollama_tune.tui.follow import card_lines, follow
from ollama_tune.tui.plain.talk import Quit
from ollama_tune.tui.plain.training import SpokenFollower, in_sentence, visible_lines

if TYPE_CHECKING:
    from ollama_tune.core.export.values import Verification
    from ollama_tune.core.runs.events import Event
    from ollama_tune.tui.plain.wizard import Wizard

TOPIC = ("plain", "export")
ALSO = ("merged", "adapter", "adapter_gguf")
ALSO_WORDS = "merged: for other programs; adapter: the small part alone; adapter_gguf: that for llama.cpp"
USUAL = ("f16", "q8_0", "q4_k_m")
"""Types that most people choose from."""
MORE_WORDS = {
    "importance": "Keep best what your own rows use; of no effect on 8 bit and more",
    "system": "System prompt that Ollama puts before every chat; none: as in training",
    "push": "Send the model to Ollama; no: the file and the commands stay in the run's folder",
}


def ask_export(wizard: Wizard) -> None:
    """Ask what few things an export needs, make it, and say what was proved."""
    talk, folder = wizard.talk, wizard.run_folder()
    if exported(folder) is not None and not _again(wizard, folder):
        return
    if not (folder.alive() and folder.status().stage == "export"):
        found = _looked(wizard, folder)
        if found is None:
            return
        request = _ask_request(wizard, folder, found)
        while not _allowed(wizard, request, found):
            request = _ask_request(wizard, folder, found, request)
        talk.say("Exporting, some minutes for a large model. Ctrl+C leaves it to itself.")
        seen = len(folder.events())
        begin_export(folder, request, found.size(request.type))
    else:
        seen = max(event.n for event in folder.events() if event.kind == "start")
    _follow(wizard, folder, seen)


def exported(folder: RunFolder) -> Event | None:
    """How the last export ended, if it came to its end."""
    events = [event for event in folder.events() if event.kind in ("done", "error", "start")]
    ends = [event for event in events if event.kind == "done" and event["stage"] == "export"]
    return ends[-1] if ends and events[-1] is ends[-1] else None


def proof(folder: RunFolder) -> Verification | None:
    """What the last export proved."""
    from ollama_tune.tui.printing import read_proof

    try:
        return read_proof(folder)
    except TuneError:
        return None


def _again(wizard: Wizard, folder: RunFolder) -> bool:
    """Whether what is exported already is to be exported once more."""
    talk, proved = wizard.talk, proof(folder)
    card = [in_sentence(line) for line in card_lines(proved)] if proved else ["There is no proof of it."]
    talk.say("✓ This run is exported already.", card[-1])
    while True:
        talk.hint("Enter goes on, a exports again, p reads out what was proved.")
        answer = talk.ask("Export", "go on", TOPIC).lower()
        if answer in ("", "a"):
            return answer == "a"
        talk.say(*(card if answer == "p" else ["✗ Press Enter, or type a or p."]))


def _looked(wizard: Wizard, folder: RunFolder) -> Look | None:
    """What each type means here; None where this model can never be a file for Ollama, after saying so."""
    found = look(folder, wizard.rooms.machine(again=True))
    if found.error is not None:
        raise found.error
    assert found.spec is not None
    if not found.spec.export_reason:
        return found
    wizard.talk.say(f"! This model cannot be exported: {visible(found.spec.export_reason)}")
    wizard.talk.say(f"What was trained is in {visible(str(folder.tuned or folder.adapter))}.")
    wizard.talk.ask("Nothing is exported", "go on", TOPIC)
    return None


def _ask_request(
    wizard: Wizard, folder: RunFolder, found: Look, before: ExportSettings | None = None
) -> ExportSettings:
    """Name and type; what few need after `more`."""
    asked = before or folder.export_settings()
    name = asked.name or found.suggestion
    recommended = found.recommended
    kind = cast("GgufType", recommended.value) if not asked.name and recommended else asked.type
    request = asked.model_copy(update={"name": _ask_name(wizard, name)})
    request = request.model_copy(update={"type": _ask_type(wizard, found, kind)})
    wizard.talk.say(*_ollama_lines(found, request))
    while True:
        wizard.talk.hint("Enter exports, more asks about the rest: importance, system prompt, other outputs.")
        answer = wizard.talk.ask("Export", "yes", TOPIC).lower()
        if answer in ("", "y", "yes"):
            return request
        if answer in ("more", "m"):
            request = _ask_more(wizard, request)
        else:
            wizard.talk.say("✗ Press Enter, or type more.")


def _ask_name(wizard: Wizard, name: str) -> str:
    from ollama_tune.core.plan.names import check_ollama_name

    while True:
        typed = wizard.talk.ask("Name in Ollama", visible(name), ("export", "name")) or name
        try:
            check_ollama_name(typed)
        except TuneError as error:
            wizard.talk.error(error)
        else:
            return typed


def _ask_type(wizard: Wizard, found: Look, kind: GgufType) -> GgufType:
    """How exact the file is: one of the usual types and the one at hand, or of all."""
    wizard.talk.say("How exact the file is. Fewer bits are smaller and faster, and a little less exact.")
    usual = [name for name in found.offers if name == kind or name in USUAL]
    types, topic = sorted(usual, key=lambda name: name != kind), ("export", "type")
    options = [_type_words(found, name) for name in types]
    place = wizard.talk.choose("Type", [*options, "Another type: all are read out."], 0, topic)
    if place < len(types):
        return types[place]
    types = list(found.offers)
    options = [_type_words(found, name) for name in types]
    return types[wizard.talk.choose("Type", options, types.index(kind), topic)]


def _type_words(found: Look, kind: GgufType) -> str:
    """A type with its size, what is lost, whether it runs here, and why it is recommended."""
    offer, best = found.offers[kind], found.recommended
    fits = {True: "runs here", False: "too large to run here", None: "not known if it runs here"}[offer.fits]
    words = f"{kind}, {human_bytes(offer.bytes)}, {fits}; lost: {visible(offer.words)}"
    words += "" if offer.available else ", cannot be written here"
    why = f". Recommended: {best.reason}" if best is not None and best.value == kind else ""
    return f"{words}{why}."


def _ollama_lines(found: Look, request: ExportSettings) -> list[str]:
    later = "The file and the commands for later stay in the run's folder."
    if not request.push:
        return [f"Nothing is sent to Ollama. {later}"]
    if not found.ollama.reachable:
        return [f"! {one_line(found.ollama.reason, 200)} {later}"]
    return [f"Ollama at {one_line(found.ollama.url, 80)} gets the model once it is proved."]


def _ask_more(wizard: Wizard, request: ExportSettings) -> ExportSettings:
    """What few need."""
    talk, values = wizard.talk, cast("dict[str, Any]", {})
    for field in EXPORT_MORE:
        name = field.path.partition(".")[2]
        now, topic = getattr(request, name), ("export", name)
        if field.words:
            values[name] = talk.agrees(MORE_WORDS[name], bool(now), topic)
        else:
            typed = talk.ask(MORE_WORDS[name], one_line(now or "none", 200), topic)
            values[name] = now if not typed else None if typed == "none" else typed
    values["also"] = _ask_also(wizard, request.also)
    return request.model_copy(update=values)


def _ask_also(wizard: Wizard, now: Sequence[str]) -> list[str]:
    """Other outputs, by their names."""
    wizard.talk.say(f"Other outputs. {ALSO_WORDS}.")
    while True:
        typed = wizard.talk.ask("Write as well, with commas", ", ".join(now) or "none", ("export", "also"))
        if not typed:
            return list(now)
        names = [name.strip() for name in typed.split(",")] if typed != "none" else []
        if set(names) <= set(ALSO):
            return names
        wizard.talk.say(f"✗ Type some of {', '.join(ALSO)}, or none.")


def _allowed(wizard: Wizard, request: ExportSettings, found: Look) -> bool:
    """Whether nothing is against this very export; a model that would be replaced is asked about."""
    from ollama_tune.core.machine.ollama import read_ollama

    talk, obstacle = wizard.talk, found.obstacle(request.type)
    checks = ask_ollama(read_ollama(), str(request.name), found.size(request.type)) if request.push else []
    refused = obstacle or refusal(checks)
    if refused:
        talk.say(f"✗ {visible(refused)} Choose otherwise; for the file alone say more, and no to sending it.")
        return False
    if not replaces(checks):
        return True
    talk.say("Ollama has a model of this name already. It is replaced once the new one is proved.")
    return talk.agrees(f"Replace {visible(str(request.name))} in Ollama", False, TOPIC)


def _follow(wizard: Wizard, folder: RunFolder, seen: int) -> None:
    """Say what the export does after the events `seen`; `TuneError` where no proved file came of it."""
    talk = wizard.talk
    try:
        state = follow(folder, SpokenFollower(talk), skip=seen)
    except KeyboardInterrupt:
        talk.say("", f"The export goes on. ollama-tune attach {visible(folder.name)} shows it again.")
        raise Quit from None
    status = folder.status()
    if state is State.FINISHED and exported(folder) is not None:
        return
    raise TuneError(
        f"The export is {status.state.value}. {visible_lines(status.message)}".strip(),
        "Export again, with another type if the file was not proved.",
    )
