"""The one schema of everything a user can set; `run.yaml` is this and nothing else.

The docstring under a field is its documentation; limits stand in the field's own constraints.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ollama_tune.core.data.values import Reading
from ollama_tune.core.errors import UsageError
from ollama_tune.core.files import write_atomic
from ollama_tune.core.plan.former import migrate
from ollama_tune.core.plan.impossible import impossible
from ollama_tune.core.plan.refusal import IMPOSSIBLE, Mistake, SettingsError, nearest, refusal
from ollama_tune.core.plan.yaml_lines import Marked, Plain, read_marked

VERSION: Literal[1] = 1
BUNDLED = "bundled"
ALL_LINEAR: Literal["all-linear"] = "all-linear"

Quantization = Literal["none", "nf4"]
TrainingPath = Literal["auto", "fast", "general"]
Method = Literal["lora", "adalora", "prompt", "ptuning", "full"]
"""What is trained: an adapter, one whose ranks are given where they help most, a soft prompt, one written
by a small network, or every weight of the model."""
LearnedFrom = Literal["sft", "dpo"]
"""What rows teach: their answers, or which of two answers is preferred."""
Recompute = Literal["none", "mlp", "layers", "offload"]
"""What the backward pass computes again instead of keeping it: nothing, the feed-forward part of each layer,
each layer from its input, or that with the inputs kept in the computer's memory."""
Sharding = Literal["auto", "ddp", "fsdp"]
"""How several processes share a run: each has the whole model, or each a part of every layer."""
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
Schedule = Literal["cosine", "linear", "constant"]
ComputeDtype = Literal["float32", "bfloat16", "float16"]
GgufType = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q4_0"]
LabelName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
ExportForm = Literal["merged", "adapter", "adapter_gguf"]
TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]
StoppingMetric = Literal["loss", "exact_match", "token_f1", "rouge_l", "bleu", "chrf", "accuracy", "macro_f1"]
"""What decides which state is best; the names are those of `ollama-tune evaluate`."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`rank: yes` is a slip of the pen, not a rank of 1."""
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation in (int, float):
            raise ValueError("yes and no are no numbers")
        return value


class ModelSettings(_Section):
    """Which model is tuned."""

    source: str = BUNDLED
    """`bundled`, a folder, or a Hugging Face id such as `org/name`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; empty means the newest."""
    chat_template: str | None = None
    """The chat form of a base model, which has none, by the name it is offered under; else empty."""


class DataSettings(_Section):
    """Which rows are learned from."""

    path: str = BUNDLED
    """`bundled`, a file or folder of examples, or the Hugging Face id of a data set such as `org/name`."""
    split: str = ""
    """The split (or file of a folder) that is trained on, where there are several; empty: the usual one."""
    validation: str = ""
    """The split (or file) that is measured on; empty: one that is named so, else a share of the rows."""
    subset: str = ""
    """The configuration of a hub data set that has several."""
    revision: str = ""
    """Branch, tag or commit of a hub data set; empty means the newest."""
    form: Literal["", "chat", "classification", "text"] = ""
    """What the rows are: conversations, texts with a label, or plain text; empty: told by their content."""
    columns: dict[str, str] = {}
    """Which column plays which part (`question`, `answer`, `system`, `context`, `text`, `label`,
    `conversation`; of pairs `chosen` and `rejected`), where the names do not tell."""
    labels: dict[str, LabelName] = {}
    """Names of classes that are numbers in the label column: value in the file -> name, such as
    `0: negative`. Values with the same name are one class; one without a name stays as it is."""
    include: list[str] = []
    """Kinds of problems whose rows are used although they would be left out."""
    exclude: list[str] = []
    """Kinds of problems whose rows are left out although they would be used."""
    validation_split: float = Field(0.1, ge=0.0, le=0.5)
    """The share of rows held out to measure on."""
    seed: int = Field(7, ge=0, lt=2**31)
    """Decides which rows are held out."""

    @field_validator("labels", mode="before")
    @classmethod
    def _values_are_texts(cls, labels: Any) -> Any:
        """YAML reads the value of `0: negative` as a number, that of `true: spam` as a truth."""
        if not isinstance(labels, dict):
            return labels
        return {str(v).lower() if isinstance(v, int) else v: name for v, name in labels.items()}

    def reading(self) -> Reading:
        """These choices as the data room takes them."""
        return Reading(
            columns=tuple(sorted(self.columns.items())),
            labels=tuple(sorted(self.labels.items())),
            form=self.form,
            split=self.split,
            validation=self.validation,
            subset=self.subset,
            revision=self.revision,
            include=tuple(sorted(self.include)),
            exclude=tuple(sorted(self.exclude)),
        )


class TrainingSettings(_Section):
    """How the model is trained."""

    method: Method = "lora"
    """What is trained: `lora` (an adapter beside the frozen weights), `adalora` (one whose ranks move to
    where they help most), `prompt` or `ptuning` (tokens before the text that only the model reads), or
    `full` (every weight of the model)."""
    objective: LearnedFrom = "sft"
    """What is learned: `sft` (the answers; of a pair of answers the better one) or `dpo` (to prefer the
    better answer of each pair over the other; rows that are no pairs are left out)."""
    beta: float = Field(0.1, gt=0.0, le=10.0)
    """How closely `dpo` stays to the base model: the larger, the less the answers move away from it."""
    path: TrainingPath = "auto"
    """Which code computes the model: `fast` (this project's own, for the families that it knows), `general`
    (transformers and peft, for all others), or `auto`: fast where it can."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the training runs; left out of a run.yaml: on the GPU where there is one."""
    gpus: int = Field(0, ge=0, le=1024)
    """GPUs of this machine that train together, the first so many; 0: all of them. On the CPU it is the
    number of processes, and 0 means one. Rows a step, their order and the loss curve stay the same on any."""
    sharding: Sharding = "auto"
    """What each of several GPUs holds: the whole model (`ddp`), or of every layer a part, the rest of which
    is fetched when it is needed (`fsdp`: slower, for models that fit no single GPU); `auto`: what fits."""
    quantization: Quantization = "none"
    """How the frozen base weights are held: `none` (16 or 32 bit) or `nf4` (4 bit, QLoRA)."""
    compute_dtype: ComputeDtype = "float32"
    """The number format of the arithmetic; left out of a run.yaml: the one this box computes fastest in."""
    rank: int = Field(16, ge=1, le=512)
    """Width of the adapter: how much it can learn."""
    alpha: int = Field(32, ge=1, le=2048)
    """Strength of the adapter; the adapter's output is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of adapter inputs set to zero while training, against overfitting."""
    targets: Literal["all-linear"] | list[str] = ALL_LINEAR
    """Which linear layers get an adapter: `all-linear` or a list of names such as `q_proj`."""
    freeze_layers: int = Field(0, ge=0, le=1000)
    """So many of the model's first layers stay as they are: without adapter, or, where every weight is
    trained, frozen with the embedding."""
    virtual_tokens: int = Field(20, ge=1, le=1024)
    """Length of a soft prompt (methods `prompt` and `ptuning`), by which every row becomes longer."""
    rslora: bool = False
    """Scale the adapter's output by alpha / sqrt(rank), so that high ranks are as strong as low ones."""
    neftune: float = Field(0.0, ge=0.0, le=100.0)
    """Noise on the embeddings of the tokens while training (NEFTune's alpha) against overfitting; 0: none."""
    dora: bool = False
    """Learn the length of each weight apart from its direction (DoRA): slower, at times better."""
    optimizer: Optimizer = "adamw"
    """What turns gradients into steps: `adamw`, `adamw_8bit` (its two averages held in 8 bit) or
    `paged_adamw_8bit` (these move to the computer's memory when the GPU is full)."""
    learning_rate: float = Field(2e-4, gt=0.0, le=1.0)
    """Size of a step at the top of the schedule."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: float = Field(0.05, ge=0.0, le=0.5)
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = Field(0.0, ge=0.0, le=1.0)
    """How strongly adapter weights are pulled to zero."""
    max_gradient_norm: float = Field(1.0, gt=0.0)
    """Longer gradients are cut to this length."""
    epochs: float = Field(2.0, gt=0.0, le=1000.0)
    """How often the training rows are seen."""
    batch_size: int = Field(1, ge=1, le=4096)
    """Rows computed at once; decides memory."""
    gradient_accumulation_steps: int = Field(8, ge=1, le=4096)
    """Batches added up before a step; rows a step = batch_size x this."""
    sequence_length: int = Field(512, ge=16, le=1_048_576)
    """The longest row in tokens; longer ones lose their oldest turns or are left out, and are counted."""
    gradient_checkpointing: Recompute = "none"
    """What is computed again in the backward pass instead of kept: `none`, `mlp` (the feed-forward part),
    `layers` (all of a layer from its input) or `offload` (that, with the inputs in the computer's memory).
    Each needs less memory and more time than the one before; true and false mean layers and none."""
    packing: bool = False
    """Lay rows end to end until a sequence is full; no row sees another. Saves padding on many rows."""
    seed: int = Field(7, ge=0, lt=2**31)
    """Start of every random number: adapter weights, order of rows, dropout."""
    evaluation_interval: int = Field(0, ge=0)
    """Steps between two measurements on the validation rows; 0 means about eight a run."""
    early_stopping: int = Field(3, ge=0)
    """So many measurements without a better one end the run; 0 means never."""
    early_stopping_metric: StoppingMetric = "loss"
    """What is best: the lowest held-out `loss`, or the highest of another metric over up to 64 held-out
    questions, which the model then answers at every measurement (`accuracy` and `macro_f1`: rows with
    labels). Equal figures are told apart by the loss."""
    checkpoint_minutes: float = Field(5.0, gt=0.0)
    """Longest time between two checkpoints; one is also written at every evaluation."""


class EvaluationSettings(_Section):
    """What is measured before and after."""

    rows: int = Field(64, ge=0)
    """How many held-out rows are answered by the base and by the tuned model."""
    max_new_tokens: int = Field(128, ge=1, le=8192)
    """Longest answer in tokens."""


class ExportSettings(_Section):
    """What becomes of the tuned model."""

    name: str | None = None
    """The model's name in Ollama; empty means that the run ends without an export."""
    type: GgufType = "q8_0"
    """Number format of the exported weights."""
    importance: bool = True
    """Let the 4- to 6-bit types keep what the held-out rows use most (an importance matrix)."""
    system: str | None = None
    """A system prompt stored with the model in Ollama; empty means none."""
    also: list[ExportForm] = []
    """What is written besides the GGUF: `merged` (16-bit safetensors folder), `adapter` (PEFT folder),
    `adapter_gguf` (the adapter alone, for llama.cpp)."""
    push: bool = True
    """Send the file to Ollama when one answers; else leave the file and the commands."""

    @field_validator("name")
    @classmethod
    def _ollama_takes_it(cls, name: str | None) -> str | None:
        """A name that Ollama would refuse must show before hours of training, not after."""
        from ollama_tune.core.plan.names import check_ollama_name

        if name is not None:
            try:
                check_ollama_name(name)
            except UsageError as error:
                raise ValueError(error.what.removesuffix(".")) from error
        return name


class TrackingSettings(_Section):
    """Which other programs get the figures of the run; rows of the data and prompts are never sent."""

    to: list[TrackerName] = []
    """Any of `tensorboard`, `mlflow`, `wandb` and `trackio`; their packages must be installed."""
    project: str = Field("ollama-tune", min_length=1, max_length=100)
    """The project (MLflow: experiment) in which the run is found there; the run has its folder's name."""
    folder: str = ""
    """Where TensorBoard's files go, in a folder with the run's name; empty: into the run's own folder."""


class Settings(_Section):
    """A whole run."""

    version: Literal[1] = VERSION
    """Version of this schema."""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    export: ExportSettings = ExportSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _possible(self) -> Settings:
        if found := impossible(self):
            raise PydanticCustomError(IMPOSSIBLE, "{why}", {"why": found[0][1], "found": found})
        return self

    def get(self, path: str) -> Any:
        """The value at a dotted path such as `training.rank`."""
        value: Any = self
        for name in path.split("."):
            value = getattr(value, name)
        return value

    def with_value(self, path: str, value: Any) -> Settings:
        """A checked copy with one value changed; raises `UsageError` with the reason."""
        return self.with_values({path: value})

    def with_values(self, values: dict[str, Any]) -> Settings:
        """A checked copy with several values changed at once; another source or path has no revision yet."""
        tree = self.model_dump()
        for section, name, none in (("model", "source", None), ("data", "path", "")):
            if values.get(f"{section}.{name}", tree[section][name]) != tree[section][name]:
                tree[section]["revision"] = none
        for path, value in values.items():
            _set(tree, path, value)
        return parse(tree)

    def to_yaml(self) -> str:
        """The text of `run.yaml`; its first line says which release wrote it."""
        values = yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)
        return f"# Written by ollama-tune {release()}.\n{values}"

    def save(self, path: Path) -> None:
        """Write `run.yaml` in one piece."""
        write_atomic(path, self.to_yaml())


def field_paths() -> list[str]:
    """Every dotted path a user can set, in the order of `run.yaml`."""
    sections = {name: field.annotation for name, field in Settings.model_fields.items() if name != "version"}
    return [f"{s}.{f}" for s, kind in sections.items() for f in kind.model_fields]  # type: ignore[union-attr]


def release() -> str:
    """The version of the installed ollama-tune."""
    return version("ollama-tune")


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    section, _, name = path.partition(".")
    if not name or not isinstance(tree.get(section), dict):
        unknown = Mistake(path, f"There is no setting {path!r}.", nearest(path, field_paths()))
        raise SettingsError([unknown])
    tree[section][name] = value


def parse(tree: Any, marked: Marked | None = None) -> Settings:
    """Check a tree of values, those of earlier releases too; `marked` is the file that it stands in.

    What is unknown or wrong raises `SettingsError`, which names the fields, their lines and what is allowed.
    """
    if not isinstance(tree, dict):
        where = f"In {marked.path}: " if marked else ""
        raise UsageError(
            f"{where}The settings are not a table of sections.", "Compare with a run.yaml of a run folder."
        )
    _check_version(tree.get("version", VERSION), marked)
    tree = migrate({name: section for name, section in tree.items() if section is not None})
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise refusal(error, tree, field_paths(), marked) from error


def _check_version(found: Any, marked: Marked | None) -> None:
    """A newer schema is refused before its fields are: its file is right, and this release too old."""
    if isinstance(found, int) and found > VERSION:
        where = f"{marked.path} is" if marked else "These settings are"
        what = f"{where} of version {found} of the settings; ollama-tune {release()} knows up to {VERSION}."
        raise UsageError(what, "Update ollama-tune.")


def load(path: Path) -> Settings:
    """Read a `run.yaml`; every problem is a `UsageError` that names the file, the line or the field."""
    marked = read_marked(path, Plain)
    return parse(marked.tree, marked)
