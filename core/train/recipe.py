"""The training stage from the first to the last event. Read `train` from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from ollama_tune.core.data.chat.render import ChatFormat
from ollama_tune.core.data.load import load_dataset
from ollama_tune.core.data.rows.cache import folder as rows_folder
from ollama_tune.core.data.split import held_out_numbers
from ollama_tune.core.data.tokens.encoded import Examples
from ollama_tune.core.data.values import DatasetProfile
from ollama_tune.core.errors import TuneError
from ollama_tune.core.models.download import download
from ollama_tune.core.models.locate import is_complete, is_hub_id, snapshots
from ollama_tune.core.models.spec import read_spec
from ollama_tune.core.models.values import ModelSpec
from ollama_tune.core.plan.memory import predict_parts
from ollama_tune.core.plan.paths import PathName, choose_path
from ollama_tune.core.plan.settings import TrainingSettings
from ollama_tune.core.runs.chat import store_chat
from ollama_tune.core.train import checkpoint
from ollama_tune.core.train.alike import same_model, same_rows
from ollama_tune.core.train.batches import StepPlan, fingerprint
from ollama_tune.core.train.checkpoint import Checkpoint
from ollama_tune.core.train.encode import encode
from ollama_tune.core.train.former import tell_former_end
from ollama_tune.core.train.hold import Hold
from ollama_tune.core.train.housekeeping import lasting
from ollama_tune.core.train.loading import load_model
from ollama_tune.core.train.measure import Held, held_of, measure_base, measure_tuned, write_reference
from ollama_tune.core.train.pace import learn_pace
from ollama_tune.core.train.path import TrainPath
from ollama_tune.core.train.probe import Budget, probe, read_budget
from ollama_tune.core.train.score import Scorer, questions_of
from ollama_tune.core.train.session import Session

if TYPE_CHECKING:
    from ollama_tune.core.evaluate.generate import Generator
    from ollama_tune.core.plan.utilisation import Utilisation
    from ollama_tune.core.train.loop import Trainer

OPEN = "If that is wrong, stop the run and start it again with the other answer."


@dataclass(frozen=True)
class Material:
    """What is trained on and what is measured on; `left_out` counts the rows of the data that are neither:
    set aside when they were read, too long, or refused by the chat template."""

    training: Examples
    validation: Examples
    held: Held
    left_out: int
    utilisation: Utilisation | None = None

    @property
    def longest(self) -> int:
        """The longest training row in tokens."""
        return max((self.training.sides or self.training).counts)

    @property
    def measured(self) -> bool:
        """True when there is anything to measure on."""
        return bool(self.held.rows or self.validation)


def train(session: Session, stages: Sequence[str]) -> dict[str, Any]:
    """Train as the run says, measure before and after, publish; returns the `done` event's fields."""
    found, damaged = checkpoint.newest(session.folder) if session.leads else (None, [])
    known = _known_model(session)
    chosen = choose_path(known, session.settings.training) if known else None
    _start(session, stages, found, chosen)
    tell_former_end(session, found)
    for name in damaged:
        session.warn(f"The checkpoint {name} is damaged.", "The run goes on from the one before it.")
    budget = read_budget(session.settings.training.device)
    session.join()
    spec = session.group.in_turn(lambda: _base_model(session, known))
    same_model(session.group, spec.folder)
    session.phase("reading_data", "Reading the data and turning it into tokens.")
    profile, chat = _read_data(session, spec)
    chosen = chosen or choose_path(spec, session.settings.training)
    material, chosen = _encoded(session, chat, spec, profile, chosen, budget)
    questions = questions_of(session, chat, spec, material.held, profile.labels)
    path, trainer, generator = _prepare(session, spec, chosen, chat, material, found)
    _meet(session, trainer)
    if questions is not None:
        trainer.judge.score_by(Scorer(session, questions, trainer.computer.engine, generator))
    probe(session, trainer, spec, material.longest, budget)
    base = cache(lambda: _measure_base(session, trainer, generator, material))
    trainer.on_measured = base
    if path.whole:
        base()
    session.phase("training", _rows_words(profile.total, material))
    trainer.run()
    early = trainer.judge.reason(trainer.state)
    if early is not None:
        session.phase("early_stopping", early)
    learn_pace(session, spec, material.training)
    _load_best(session, trainer, path)
    base()
    tuned = _measure_tuned(session, trainer, generator, material)
    _publish(session, trainer, path, generator, material)
    return {
        "stage": "train",
        "steps": trainer.state.step,
        "best_step": trainer.state.best_step,
        "best_loss": trainer.state.best_loss,
        "base_exact_match": base(),
        "tuned_exact_match": tuned,
        "early": early,
    }


def _known_model(session: Session) -> ModelSpec | None:
    """What is known of the model; None while its files are not here, or are not what they should be."""
    try:
        return read_spec(session.settings.model.source, session.settings.model.revision)
    except TuneError:
        return None  # downloaded, or told, in a moment


def _start(
    session: Session, stages: Sequence[str], found: Checkpoint | None, chosen: tuple[PathName, str] | None
) -> None:
    session.start(
        "train",
        stages,
        total_steps=None,
        resumed_from=found.state.step if found else None,
        train_rows=None,
        validation_rows=None,
        left_out=None,
        path=chosen and chosen[0],
        path_reason=chosen and chosen[1],
    )


def _base_model(session: Session, known: ModelSpec | None) -> ModelSpec:
    """The base model's files, checked; a hub id's weights are downloaded where missing."""
    source, revision = session.settings.model.source, session.settings.model.revision
    if is_hub_id(source) and not any(map(is_complete, snapshots(source, revision))):
        session.phase("downloading", f"Downloading {source}.")
        download(source, revision, session.progress("downloading", "B"))
        known = None
    return known or read_spec(source, revision)


def _arranged(
    session: Session, spec: ModelSpec, chosen: tuple[PathName, str], rows: tuple[int, int], budget: Budget
) -> tuple[tuple[PathName, str], TrainingSettings]:
    """Settle whether several processes share out the model, which the general path does; the path, and the
    settings with what `auto` means. `rows` are the tokens of the longest one and of the most at once."""
    training = session.settings.training
    if session.group.size > 1:
        from ollama_tune.core.train.sharded import shares_out

        session.group.lockstep = shares_out(session.group, training, spec, *rows, budget.limit)
    if not session.group.lockstep:
        return chosen, training.model_copy(update={"sharding": "ddp"})
    training = training.model_copy(update={"sharding": "fsdp"})
    return choose_path(spec, training), training


def _read_data(session: Session, spec: ModelSpec) -> tuple[DatasetProfile, ChatFormat]:
    """The rows, and the form in which this model is told them, which the run's folder keeps."""
    data, hold, group = session.settings.data, Hold(session), session.group
    profile = group.in_turn(
        lambda: hold.write(0, lambda: load_dataset(data.path, data.reading()), rows_folder())
    )
    rows = profile.rows
    for asked in profile.questions:
        session.warn(f"The data leaves something open. {asked.told}", OPEN)
    return profile, group.in_turn(
        lambda: hold.write(0, lambda: store_chat(session.folder, spec.folder, rows))
    )


def _rows_words(total: int, material: Material) -> str:
    """How many rows are learned, and of a whole how many are not used at all."""
    words = f"Training on {len(material.training):,} rows."
    if not material.left_out:
        return words
    return f"{words} {material.left_out:,} of the data's {total:,} are left out: `ollama-tune data` says why."


def _encoded(
    session: Session,
    chat: ChatFormat,
    spec: ModelSpec,
    profile: DatasetProfile,
    chosen: tuple[PathName, str],
    budget: Budget,
) -> tuple[Material, tuple[PathName, str]]:
    """Split and encode the rows, leave out those that are too long, settle the path, and tell the figures."""
    settings, rows = session.settings, profile.rows
    held_out = held_out_numbers(rows, settings.data.validation_split, settings.data.seed)
    limit = settings.training.sequence_length
    training, validation = encode(session, chat, rows, held_out)
    if session.group.size > 1:
        same_rows(session.group, fingerprint(training) + fingerprint(validation))
    if not training:
        raise TuneError(
            f"No row of the data is left to train on: the longest allowed is {limit} tokens.",
            "Raise training.sequence_length or choose other data.",
        )
    held = held_of(chat, (rows[number] for number in sorted(held_out)), limit, settings.evaluation.rows)
    used = {*training.rows, *validation.rows}
    known = _utilisation(session, spec, training)
    material = Material(training, validation, held, profile.total - len(used), known)
    if not material.measured:
        session.warn("No rows are held out, so nothing is measured.", "Set data.validation_split above 0.")
    plan = StepPlan(training.counts, settings.training)
    lengths = material.longest, plan.most_tokens(plan.most_rows)
    chosen, settled = _arranged(session, spec, chosen, lengths, budget)
    exported = settings.export.name is not None
    parts = predict_parts(settled, spec, *lengths, session.group.size, exported=exported)
    session.emit(
        "data",
        total_steps=plan.total_steps,
        train_rows=len(training),
        validation_rows=len(validation),
        left_out=material.left_out,
        tokens=sum(training.counts),
        longest=material.longest,
        predicted={part.name: part.bytes for part in parts},
        path=chosen[0],
        path_reason=chosen[1],
        **(asdict(known) if known else {}),
    )
    return material, chosen


def _utilisation(session: Session, spec: ModelSpec, examples: Examples) -> Utilisation | None:
    """What the share of the card's arithmetic is reckoned with; None where the card is not known."""
    if session.settings.training.device == "cpu":
        return None
    from ollama_tune.core.data.tokens.lengths import measure
    from ollama_tune.core.machine.gpus import read_gpus
    from ollama_tune.core.plan.utilisation import utilisation

    found = utilisation(session.settings, spec, measure(examples), next(iter(read_gpus().gpus), None))
    return found and replace(found, peak_flops=session.group.size * found.peak_flops)


def _prepare(
    session: Session,
    spec: ModelSpec,
    chosen: tuple[PathName, str],
    chat: ChatFormat,
    material: Material,
    found: Checkpoint | None,
) -> tuple[TrainPath, Trainer, Generator]:
    """Load the model, build the loop, and restore the checkpoint."""
    session.phase("loading_model", "Loading the libraries and the model.")
    if session.group.lockstep:
        session.phase("sharing_out", "Loading the model; each process keeps a part of its layers.")
    with lasting():
        path = load_model(session, spec, chosen, material.longest)
        if session.settings.training.objective == "dpo":
            from ollama_tune.core.train.preference import preferring

            path = preferring(session, path, material.training, material.validation)
        return path, *_loop(session, path, chat, material, found)


def _loop(
    session: Session, path: TrainPath, chat: ChatFormat, material: Material, found: Checkpoint | None
) -> tuple[Trainer, Generator]:
    """Build the loop, check its loss against the model's own, and restore the checkpoint."""
    from ollama_tune.core.evaluate.generate import Generator
    from ollama_tune.core.train.loop import Trainer

    trainer = Trainer(session, path, material.training, material.validation)
    remark = trainer.check()
    if remark:
        session.warn(remark, "Nothing has to be done; a smaller batch_size helps if memory does not suffice.")
    if found is not None:
        trainer.restore(found)
    generator = Generator(trainer.computer.engine, chat, on_shortage=trainer.recovery.answers)
    trainer.judge.ask(material.held, generator)
    trainer.judge.utilisation = material.utilisation
    return trainer, generator


def _meet(session: Session, trainer: Trainer) -> None:
    """Wait for all processes; those that follow stay in here to the end."""
    session.group.meet("ready", "")
    if not session.leads:
        from ollama_tune.core.train.follower import follow

        follow(session, trainer)


def _measure_base(
    session: Session, trainer: Trainer, generator: Generator, material: Material
) -> float | None:
    """Measure the base model, once in a run's life; a resumed run reads it from its log.

    It is asked after the first measurement of the tuned one: nobody waits for it to see a first loss. Where
    every weight is trained it is there before the first step only, and asked then.
    """
    known = [event for event in session.history if event.kind == "evaluation" and event["model"] == "base"]
    if known:
        rate: float | None = known[-1]["exact_match"]
        return rate
    if not material.measured:
        return None
    session.phase("evaluating_base", "Asking the base model the held-out questions.")
    found = measure_base(session, generator, material.held, trainer.base_loss())
    state = trainer.state
    if 0 < state.step < trainer.plan.total_steps and not trainer.judge.ended(state):
        session.phase("training", "Going on with the training.")
    return found


def _measure_tuned(
    session: Session, trainer: Trainer, generator: Generator, material: Material
) -> float | None:
    if not material.measured:
        return None
    session.phase("evaluating_tuned", "Asking the tuned model the held-out questions.")
    state = trainer.state
    return measure_tuned(session, generator, material.held, state.best_loss, state.best_step or state.step)


def _load_best(session: Session, trainer: Trainer, path: TrainPath) -> None:
    """Go back to the best checkpoint's weights; the last ones stay where the best is damaged."""
    state = trainer.state
    if state.best_step is None or state.best_step == state.step:
        return
    best = checkpoint.read_checkpoint(checkpoint.checkpoint_path(session.folder, state.best_step))
    if best is None:
        session.warn(
            f"The checkpoint of step {state.best_step} is damaged.", "The state of the last step is kept."
        )
        state.best_step, state.best_loss = state.step, trainer.validation_loss()
        return
    checkpoint.load_weights(best, path)


def _publish(
    session: Session, trainer: Trainer, path: TrainPath, generator: Generator, material: Material
) -> None:
    """Write what was trained, and the answers that an export of it is compared with; let the others end."""
    session.phase("saving", f"Saving the {'model' if path.whole else 'adapter'}.")
    size = sum(path.parts().values()) if path.whole else path.parts()["adapter"]
    trainer.hold.write(size, lambda: checkpoint.publish(session.folder, path))
    trainer.recovery.twice(
        "reference",
        trainer.state.step,
        lambda: trainer.hold.write(0, lambda: write_reference(session, generator, material.held)),
        "the answers that an export is compared with are left out.",
    )
    session.part()
