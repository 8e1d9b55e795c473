"""Fields of other tools that are told by how their names begin, where no table has them.

The names are those of the tools' public documentation and argument classes.
"""

from __future__ import annotations

from collections.abc import Mapping

from ollama_tune.core.plan.import_preferences import METHOD
from ollama_tune.core.plan.import_rules import Found, Rule, dropped, missing
from ollama_tune.core.plan.import_tables import (
    BY_TIME,
    HOW_SPREAD,
    LOSS,
    MEASURED,
    OWN_TOKENS,
    PREPARED,
    PUBLISHED,
    TOLD,
    TRACKED,
    each,
)

SAMPLING = "Answers are the likeliest ones here, to be compared."

PREFIXES: Mapping[str, Rule] = {
    **each(
        """wandb_ use_wandb mlflow_ use_mlflow hf_mlflow_ comet_ use_comet swanlab_ use_swanlab
        use_tensorboard use_trackio trackio_ otel_ use_otel project""",
        dropped(TRACKED),
    ),
    **each(
        """loss_watchdog_ log_ logging_ disable_tqdm profiler_ profile_ enable_torch_profiler
        print_param_status skip_memory_metrics""",
        dropped(TOLD),
    ),
    **each(
        """include_ prediction_loss_only batch_eval_metrics eval_delay eval_do_concat eval_use_gather
        eval_accumulation eval_on_each eval_sequence_len eval_causal_lm do_causal_lm_eval do_bench_eval
        bench_ label_names compute_accuracy""",
        dropped(MEASURED),
    ),
    **each(
        """liger_ ddp fsdp_ use_fsdp flash_ flex_ sage_attention eager_attention sdpa_ large_head_attention
        fused_attn gemma4_hybrid block_diag_attn torch_ use_kernels use_v1_kernels use_dsv4 dsv4_ use_glm
        use_scattermoe use_sonicmoe experts_implementation quantize_moe_experts llama4_linearized moe_grouped
        moe_token_dispatcher cut_cross_entropy chunked_cross_entropy tiled_mlp layer_offloading
        selective_checkpointing gradient_checkpointing_kwargs activation_ use_reentrant_gc use_unsloth_gc
        lora_embedding_kernel upcast_ embeddings_skip_upcast fp32_norm deepcompile gc_ max_memory
        gpu_memory_limit experimental_ offload_folder overlap_ ray_ use_ray resources_per_worker accelerator_
        use_distributed use_mca use_megatron megatron_ use_hyper hyper_parallel kt_ use_kt
        sequence_parallel heads_k_stride ring_attn dp_ tensor_parallel context_par expert_parallel
        tensor_model_parallel pipeline_model_parallel expert_model_parallel parallelism_config device
        world_size n_gpu n_node master_ debug average_tokens full_determinism auto_find_batch_size
        use_kv_cache quantization_device_map recompute_ bias_activation apply_rope_fusion mixed_precision
        bf16_full_eval fp16_full_eval""",
        dropped(HOW_SPREAD),
    ),
    **each(
        """skip_prepare_dataset streaming dataloader_ preprocessing_ preprocess_ buffer_size
        data_shared_file ignore_pad_token dataset_keep_in_memory dataset_shard num_dataset_shards
        sample_packing_ batch_flattening pad_to_ pretrain_multipack ignore_data_skip is_preprocess""",
        dropped(PREPARED),
    ),
    **each("save_ enable_jit_checkpoint restore_callback dynamic_checkpoint", dropped(BY_TIME)),
    **each(
        """export_ infer_ sglang_ hub_ hf_hub_ ms_hub_ om_hub_ push_dataset merge_lora merge_method
        gradio_""",
        dropped(PUBLISHED),
    ),
    **each(
        """do_sample temperature top_ num_beams eval_num_beams repetition_penalty length_penalty
        skip_special_tokens generate_samples num_generation_samples generation_""",
        dropped(SAMPLING),
    ),
    **each(
        "tokenizer_ processor_ hf_use_auth use_fast_tokenizer is_falcon_derived base_model_ignore",
        dropped("Read from the model."),
    ),
    **each(
        "image_ video_ audio_ crop_to use_audio freeze_vision freeze_multi freeze_mm",
        dropped("Pictures and sound are refused."),
    ),
    **each(
        """added_tokens add_tokens add_special_tokens new_special_tokens init_special_tokens
        resize_token_embeddings mean_resizing shrink_embeddings split_special_tokens fix_untrained""",
        missing(OWN_TOKENS),
    ),
    **each("eaft_ asft_ use_eaft", missing(LOSS)),
    "greater_is_better": lambda value: Found("dropped", why="It is known of every figure."),
    "min_sample_len": missing("Short rows are learned from too."),
    **each(
        """galore_ qgalore_ apollo_ badam_ use_badam use_adam_mini dion_ lisa_ jagged_ relora_ oft_ pref_
        dpo_ kto_ ppo_ orpo_ simpo_ cpo_ qat fp8 trl ebft vllm diffusion pissa_ peft_ loraplus_
        lora_rank_pattern lora_alpha_pattern lr_ embedding_lr optim_ adam_ train_from_scratch reinit_weights
        use_pose pose_ scaling_softmax reward_model ref_model ld_alpha num_labels process_reward
        center_rewards use_onebitllms freeze_extra create_new_adapter""",
        missing(METHOD),
    ),
}
"""Fields of one kind by how their names begin."""
