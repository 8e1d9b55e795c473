"""The fields of LLaMA-Factory, Axolotl and TRL as settings of a run.yaml.

Names and defaults are those of the tools' public documentation and argument classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_tune.core.plan.import_data import MORE
from ollama_tune.core.plan.import_preferences import METHOD, PREFERENCES
from ollama_tune.core.plan.import_rules import (
    UNSAID,
    Found,
    Rule,
    count,
    dropped,
    flag,
    missing,
    name_list,
    named,
    share,
    take,
    words,
)

SCHEDULE = "training.schedule"
DTYPE = "training.compute_dtype"
WHAT = "training.method"
QUANTIZATION = "training.quantization"
OPTIMIZER = "training.optimizer"
RECOMPUTE = "training.gradient_checkpointing"

ELSEWHERE = "Runs, checkpoints and logs have their own place here: `ollama-tune paths`."
TOLD = "Every step is an event here, and the screen follows."
TRACKED = "`--track` and tracking.to say where figures go."
MEASURED = "The held-out rows are measured about eight times a run, and at its end."
HOW_SPREAD = "It says how the work is spread and computed, not what is learned."
BY_TIME = "Checkpoints are written by time (training.checkpoint_minutes) and at every measurement."
PREPARED = "Rows are prepared here without settings for it."
PUBLISHED = "Nothing is sent to a hub; `ollama-tune export` puts the model into Ollama."
LOSS = "The loss here is the usual one on the answers."
STEPS = "The number of steps is not known here: write a share of them into training.warmup."
LORA = "The adapter here is LoRA."
ORDER = "Rows come in an order drawn anew for every epoch."
OWN_TOKENS = "The model's own tokens are used as they are."
OWN_TEMPLATE = "The chat template of the model's own tokenizer is used."
FROZEN = ("full", "training.freeze_layers is the number of a model's first layers that stay as they are.")
TO_ZERO = "The learning rate falls to zero here."
SYSTEM = "A system prompt stands in the rows; export.system stores one in Ollama."
TOO_LONG = "A longer row loses its oldest turns, or is left out and counted."
ROWS = "The number of rows is not known here: write a share of them into data.validation_split."

_SCHEDULES = named(
    SCHEDULE,
    {"cosine": "cosine", "linear": "linear", "constant_with_warmup": "constant"},
    {
        "constant": ("constant", "Here it rises in the first steps unless training.warmup is 0."),
        "cosine_with_min_lr": ("cosine", "It falls to zero here."),
        "cosine_with_restarts": ("cosine", "There are no restarts here."),
        "polynomial": ("linear", "It falls on a straight line here."),
        "rex": ("linear", "It falls on a straight line here."),
        "inverse_sqrt": ("cosine", "This is the nearest one that falls."),
        "one_cycle": ("cosine", "This is the nearest one that falls."),
    },
)
_OPTIMIZERS = named(
    OPTIMIZER,
    {
        "adamw": "adamw",
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_torch_xla": "adamw",
        "adamw_torch_npu_fused": "adamw",
        "adamw_apex_fused": "adamw",
        "adamw_hf": "adamw",
        "adamw_8bit": "adamw_8bit",
        "adamw_bnb_8bit": "adamw_8bit",
        "paged_adamw_8bit": "paged_adamw_8bit",
    },
    {
        "paged_adamw": ("adamw", "Its states are held in 32 bit here too, and not paged."),
        **dict.fromkeys(
            ("adamw_torch_8bit", "ao_adamw_8bit"),
            ("adamw_8bit", "Its averages are held in 8 bit here too, in other blocks."),
        ),
        **dict.fromkeys(
            ("adamw_torch_4bit", "ao_adamw_4bit", "ao_adamw_fp8"),
            ("adamw_8bit", "Its averages are held in 8 bit here."),
        ),
        "paged_adamw_32bit": ("adamw", "Its states are held in 32 bit here too, and not paged."),
    },
)
_RECOMPUTE = words(
    {
        "true": Found("taken", {RECOMPUTE: "layers"}),
        "false": Found("taken", {RECOMPUTE: "none"}),
        "unsloth": Found("taken", {RECOMPUTE: "offload"}),
        "offload": Found("taken", {RECOMPUTE: "offload"}),
    },
    Found("missing", why="training.gradient_checkpointing takes none of this kind."),
)
_BF16 = words(
    {
        "true": Found("taken", {DTYPE: "bfloat16"}),
        "full": Found("taken", {DTYPE: "bfloat16"}),
        "false": Found("dropped", why="The number format is chosen for the box unless it is named."),
        "auto": UNSAID,
    },
    Found("missing", why="This is neither true nor false."),
)
_FP16 = words(
    {
        "true": Found("taken", {DTYPE: "float16", "training.device": "cuda"}, "float16 needs a GPU here."),
        "false": Found("dropped", why="The number format is chosen for the box unless it is named."),
        "auto": UNSAID,
    },
    Found("missing", why="This is neither true nor false."),
)
_FOUR_BIT = words(
    {"true": Found("taken", {QUANTIZATION: "nf4"}), "false": Found("taken", {QUANTIZATION: "none"})},
    Found("missing", why="This is neither true nor false."),
)
_EIGHT_BIT = words(
    {
        "true": Found("approximated", {QUANTIZATION: "none"}, "Weights are held in 16 or in 4 bit here."),
        "false": Found("dropped", why="It is off."),
    },
    Found("missing", why="This is neither true nor false."),
)
_BITS = words(
    {
        "4": Found("taken", {QUANTIZATION: "nf4"}),
        "8": Found("approximated", {QUANTIZATION: "none"}, "Weights are held in 16 or in 4 bit here."),
    },
    Found("missing", why="Weights are held in 16 or in 4 bit here."),
)
_DTYPES = named(DTYPE, {"bfloat16": "bfloat16", "bf16": "bfloat16", "float32": "float32", "fp32": "float32"})
_TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")


def _trackers(value: Any) -> Found:
    names = [str(name).lower() for name in (value if isinstance(value, list) else [value])]
    known = [name for name in names if name in _TRACKERS]
    if known:
        return Found("taken", {"tracking.to": known})
    none = names in (["none"], ["all"])
    return Found("dropped" if none else "missing", why=TRACKED)


def _special_tokens(value: Any) -> Found:
    """What only fills up a row teaches nothing; other tokens would be learned."""
    if isinstance(value, Mapping) and set(value) <= {"pad_token"}:
        return Found("dropped", why="Padding is never learned from.")
    return Found("missing", why=OWN_TOKENS)


def each(names: str, rule: Rule) -> dict[str, Rule]:
    """One rule for several names, with blanks between them."""
    return dict.fromkeys(names.split(), rule)


COMMON: Mapping[str, Rule] = {
    "learning_rate": take("training.learning_rate"),
    "weight_decay": take("training.weight_decay"),
    "gradient_accumulation_steps": take("training.gradient_accumulation_steps"),
    "gradient_checkpointing": _RECOMPUTE,
    "seed": take("training.seed", "data.seed"),
    "warmup_ratio": take("training.warmup"),
    "warmup_steps": share("training.warmup", STEPS),
    "eval_steps": count("training.evaluation_interval", "training.evaluation_interval counts steps."),
    "early_stopping_patience": take("training.early_stopping"),
    "bf16": _BF16,
    "fp16": _FP16,
    "lora_alpha": take("training.alpha"),
    "lora_dropout": take("training.dropout"),
    "use_rslora": flag("training.rslora"),
    "use_dora": flag("training.dora"),
    "neftune_noise_alpha": take("training.neftune"),
    "report_to": _trackers,
    "adam_beta1": missing("The optimizer here has 0.9.", same=(0.9,)),
    "adam_beta2": missing("The optimizer here has 0.999.", same=(0.999,)),
    **each("adam_epsilon adam_eps", missing("The optimizer here has 1e-8.", same=(1e-8, "1e-8"))),
    "label_smoothing_factor": missing(LOSS, same=(0, 0.0)),
    "data_seed": missing("The order of the rows follows training.seed."),
    "train_sampling_strategy": missing(ORDER, same=("random", "group_by_length")),
    "use_cpu": words({"true": Found("taken", {"training.device": "cpu"})}, UNSAID),
    "activation_checkpointing": _RECOMPUTE,
    "max_steps": missing("Write training.epochs instead.", same=(-1,)),
    "max_samples": missing("All rows are used; give a file with fewer."),
    "loraplus_lr_ratio": missing(METHOD),
    "trust_remote_code": dropped("Code from a model's folder is never run here."),
    **each(
        "logging_steps logging_first_step logging_strategy logging_dir plot_loss log_level", dropped(TOLD)
    ),
    **each("output_dir overwrite_output_dir run_name overwrite_cache", dropped(ELSEWHERE)),
    **each("save_steps save_strategy save_total_limit save_only_model", dropped(BY_TIME)),
    **each("save_safetensors save_first_step", dropped(BY_TIME)),
    **each("resume_from_checkpoint auto_resume_from_checkpoints", dropped("`ollama-tune resume` does that.")),
    **each("eval_strategy evaluation_strategy do_eval per_device_eval_batch_size", dropped(MEASURED)),
    **each("do_train do_predict eval_on_start predict_with_generate", dropped(MEASURED)),
    **each("dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor", dropped(PREPARED)),
    **each("preprocessing_num_workers preprocessing_batch_size dataset_num_proc", dropped(PREPARED)),
    **each("ddp_timeout deepspeed fsdp fsdp_config local_rank tf32 torch_compile", dropped(HOW_SPREAD)),
    **each("flash_attn flash_attention attn_implementation use_cache", dropped(HOW_SPREAD)),
    **each("enable_liger_kernel use_liger_kernel use_unsloth low_cpu_mem_usage", dropped(HOW_SPREAD)),
    **each("group_by_length length_column_name remove_unused_columns", dropped(PREPARED)),
    **each("push_to_hub hub_model_id hub_strategy hub_private_repo", dropped(PUBLISHED)),
}
"""What transformers' TrainingArguments gave all of them, and names that several share."""

_TRAINER: Mapping[str, Rule] = {
    "per_device_train_batch_size": take("training.batch_size"),
    "num_train_epochs": take("training.epochs"),
    "lr_scheduler_type": _SCHEDULES,
    "optim": _OPTIMIZERS,
    "max_grad_norm": take("training.max_gradient_norm"),
    "model_name_or_path": take("model.source"),
    "model_revision": take("model.revision"),
    "load_best_model_at_end": missing("The best state is kept here.", same=(True, "true")),
    "metric_for_best_model": words(
        dict.fromkeys(("loss", "eval_loss"), Found("taken", {"training.early_stopping_metric": "loss"})),
        Found("missing", why="training.early_stopping_metric has other names."),
    ),
}

LLAMAFACTORY: Mapping[str, Rule] = {
    **COMMON,
    **_TRAINER,
    **PREFERENCES["llamafactory"],
    "finetuning_type": named(
        WHAT, {"lora": "lora", "full": "full"}, {"oft": ("lora", LORA), "freeze": FROZEN}
    ),
    **each("use_eaft_loss use_dft_loss use_asft_loss", missing(LOSS)),
    "template": lambda value: Found("approximated", why=OWN_TEMPLATE),
    "early_stopping_steps": take("training.early_stopping"),
    "max_new_tokens": take("evaluation.max_new_tokens"),
    "disable_shuffling": missing(ORDER),
    **each("mix_strategy interleave_probs", missing(MORE)),
    **each("enable_thinking preserve_thinking", missing(OWN_TEMPLATE)),
    "cutoff_len": take("training.sequence_length"),
    "lora_rank": take("training.rank"),
    "lora_target": name_list("training.targets", ("all",)),
    "quantization_bit": _BITS,
    "quantization_method": missing(
        "4-bit weights are NF4 of bitsandbytes here.", same=("bnb", "bitsandbytes")
    ),
    "double_quantization": missing("The scales of 4-bit weights are quantized here.", same=(True, "true")),
    "disable_gradient_checkpointing": flag(RECOMPUTE, "none", "layers"),
    "pure_bf16": flag(DTYPE, "bfloat16", "float32"),
    "packing": words(
        {
            "true": Found("approximated", {"training.packing": True}, "No row sees another here."),
            "false": Found("taken", {"training.packing": False}),
        },
        UNSAID,
    ),
    "neat_packing": flag("training.packing"),
    "val_size": share("data.validation_split", ROWS),
    "default_system": missing(SYSTEM),
    "train_on_prompt": missing(LOSS),
    "mask_history": missing("Every answer of a conversation is learned from."),
    "resize_vocab": missing("No tokens are added here."),
    "additional_target": missing("Only adapters are trained and exported."),
    "adapter_name_or_path": missing("A run begins with a fresh adapter."),
    "streaming": dropped(PREPARED),
    "media_dir": dropped("Pictures and sound are refused."),
    **each("tokenized_path cache_dir include_num_input_tokens_seen", dropped(PREPARED)),
    **each("rope_scaling shift_attn mixture_of_depths tool_format", missing(METHOD)),
    **each("pissa_init pissa_iter pissa_convert use_galore use_badam use_apollo", missing(METHOD)),
    **each("use_llama_pro use_muon", missing(METHOD)),
    **each("freeze_trainable_layers freeze_trainable_modules", missing(FROZEN[1])),
}

AXOLOTL: Mapping[str, Rule] = {
    **COMMON,
    **PREFERENCES["axolotl"],
    "base_model": take("model.source"),
    "revision_of_model": take("model.revision"),
    "adapter": words(
        {
            "lora": Found("taken", {WHAT: "lora"}),
            "qlora": Found("taken", {WHAT: "lora", QUANTIZATION: "nf4"}),
            "none": Found("taken", {WHAT: "full"}),
            "": Found("taken", {WHAT: "full"}),
        },
        Found("missing", why=METHOD),
    ),
    "load_in_4bit": _FOUR_BIT,
    "load_in_8bit": _EIGHT_BIT,
    "lora_r": take("training.rank"),
    "lora_target_modules": name_list("training.targets", ("all-linear",)),
    "lora_target_linear": words(
        {"true": Found("taken", {"training.targets": "all-linear"}), "false": Found("dropped", why="Off.")},
        Found("missing", why="This is neither true nor false."),
    ),
    "peft_use_rslora": flag("training.rslora"),
    "peft_use_dora": flag("training.dora"),
    "sequence_len": take("training.sequence_length"),
    "sample_packing": flag("training.packing"),
    "micro_batch_size": take("training.batch_size"),
    "num_epochs": take("training.epochs"),
    "optimizer": _OPTIMIZERS,
    "lr_scheduler": _SCHEDULES,
    "max_grad_norm": take("training.max_gradient_norm"),
    "val_set_size": share("data.validation_split", ROWS),
    "chat_template": words(
        {"tokenizer_default": Found("dropped", why="This is what is done here.")},
        Found("approximated", why=OWN_TEMPLATE),
    ),
    "train_on_inputs": missing(LOSS),
    "special_tokens": _special_tokens,
    "eot_tokens": lambda value: Found(
        "approximated", why="An answer ends as the model's chat template has it, and that is learned."
    ),
    "bfloat16": _BF16,
    "float16": _FP16,
    "load_best_model_at_end": missing("The best state is kept here.", same=(True, "true")),
    "excess_length_strategy": lambda value: Found("approximated", why=TOO_LONG),
    **each("curriculum_sampling sample_packing_sequentially", missing(ORDER)),
    **each("chat_template_jinja chat_template_kwargs", missing(OWN_TEMPLATE)),
    "default_system_message": missing(SYSTEM),
    "eta_min": missing(TO_ZERO, same=(0, 0.0)),
    "cosine_min_lr_ratio": missing(TO_ZERO, same=(0, 0.0)),
    "cosine_constant_lr_ratio": missing(
        "The learning rate falls from the end of its warm-up on.", same=(0, 0.0)
    ),
    "tokens": missing("No tokens are added here."),
    "lora_modules_to_save": missing("Only adapters are trained and exported."),
    "lora_model_dir": missing("A run begins with a fresh adapter."),
    "evals_per_epoch": dropped(MEASURED),
    "batch_size": missing("Write training.gradient_accumulation_steps: total / rows at once."),
    **each("model_type tokenizer_type tokenizer_config base_model_config", dropped("Read from the model.")),
    **each(
        "is_llama_derived_model is_mistral_derived_model is_qwen_derived_model",
        dropped("Read from the model."),
    ),
    **each("dataset_prepared_path dataset_processes shuffle_merged_datasets", dropped(PREPARED)),
    **each(
        "pad_to_sequence_len eval_sample_packing eval_batch_size multipack_real_batches", dropped(PREPARED)
    ),
    **each("gradient_checkpointing_kwargs plugins strict debug lora_on_cpu", dropped(HOW_SPREAD)),
    **each("xformers_attention sdp_attention s2_attention lora_mlp_kernel", dropped(HOW_SPREAD)),
    **each("lora_qkv_kernel lora_o_kernel qlora_sharded_model_loading", dropped(HOW_SPREAD)),
    **each("saves_per_epoch save_first_step", dropped(BY_TIME)),
    **each("eval_table_size eval_max_new_tokens", dropped(MEASURED)),
    **each("lora_fan_in_fan_out", dropped("Read from the model.")),
    "bnb_config_kwargs": missing("4-bit weights are NF4 here.", same=({"bnb_4bit_use_double_quant": True},)),
    "lora_target_parameters": missing("Only linear layers get an adapter."),
    "optim_args": missing("The optimizer takes no further values here."),
    **each("relora gptq peft reward_model embedding_lr", missing(METHOD)),
    **each("lr_groups unfrozen_parameters noisy_embedding_alpha", missing(METHOD)),
}

TRL: Mapping[str, Rule] = {
    **COMMON,
    **_TRAINER,
    **PREFERENCES["trl"],
    "model_name": take("model.source"),
    "dtype": _DTYPES,
    "torch_dtype": _DTYPES,
    "lora_r": take("training.rank"),
    "r": take("training.rank"),
    "lora_target_modules": name_list("training.targets", ("all-linear",)),
    "target_modules": name_list("training.targets", ("all-linear",)),
    "lora_modules_to_save": missing("Only adapters are trained and exported."),
    "use_gradient_checkpointing": _RECOMPUTE,
    "load_in_4bit": _FOUR_BIT,
    "load_in_8bit": _EIGHT_BIT,
    "use_bnb_nested_quant": missing("The scales of 4-bit weights are quantized here.", same=(True, "true")),
    "bnb_4bit_quant_type": missing("4-bit weights are NF4 here.", same=("nf4",)),
    "max_length": take("training.sequence_length"),
    "max_seq_length": take("training.sequence_length"),
    "packing": flag("training.packing"),
    "random_state": take("training.seed", "data.seed"),
    "use_peft": flag(WHAT, "lora", "full"),
    "completion_only_loss": missing(LOSS, same=(True,)),
    "assistant_only_loss": missing(LOSS, same=(True,)),
    "full_finetuning": flag(WHAT, "full", "lora"),
    "eos_token": missing(OWN_TOKENS),
    "chat_template_path": missing(OWN_TEMPLATE),
    "target_parameters": missing("Only linear layers get an adapter."),
    **each("eval_packing packing_strategy dataset_kwargs pad_to_multiple_of padding_free", dropped(PREPARED)),
    **each("gradient_checkpointing_kwargs activation_offloading", dropped(HOW_SPREAD)),
}

TABLES: Mapping[str, Mapping[str, Rule]] = {"llamafactory": LLAMAFACTORY, "axolotl": AXOLOTL, "trl": TRL}
