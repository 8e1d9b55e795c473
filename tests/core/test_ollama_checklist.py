"""The checklist of an export to Ollama, number by number, with the tests that hold each line.

A number without a test that exists fails; so does a table that names a test nobody has.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

CHECKLIST: dict[int, tuple[str, tuple[str, ...]]] = {
    # before any work
    1: (
        "an unreachable server is named with how to start it; the file and the commands are left",
        (
            "core/test_export_ollama.py::test_nobody_there_says_how_to_start_it",
            "core/test_export_handover.py::test_no_wish_and_no_server_are_told_apart",
            "core/test_export_pipeline.py::test_a_run_becomes_a_proved_file_with_commands",
        ),
    ),
    2: (
        "the version (rc, 0.0.0) has a generation; before 0.5.5 it is refused by name",
        (
            "core/test_export_publish.py::test_every_version_has_its_generation",
            "core/test_export_publish.py::test_a_version_that_cannot_take_a_file_is_refused_by_name",
            "core/test_export_handover.py::test_an_ollama_before_0_5_5_is_refused_by_name",
        ),
    ),
    3: (
        "OLLAMA_HOST in all forms, every interface is loopback, an empty 403 is explained",
        (
            "core/test_machine_ollama.py::test_every_form_of_ollama_host",
            "core/test_machine_ollama.py::test_a_refused_address_is_explained",
            "core/test_export_ollama.py::test_a_refused_address_is_explained",
            "core/test_ollama_double.py::test_the_double_refuses_a_foreign_host_with_an_empty_403",
        ),
    ),
    4: (
        "the name is checked before any work; replacing is asked",
        (
            "core/test_export_pipeline.py::test_a_name_is_checked_before_any_work",
            "core/test_export_publish.py::test_a_name_that_exists_is_noted",
            "tui/test_run_export_ollama.py::test_a_model_that_ollama_has_is_replaced_only_after_a_yes",
        ),
    ),
    5: (
        "room for the file here and, once or twice, on the server's disk",
        (
            "core/test_export_gguf.py::test_too_small_a_disk_is_told_before_any_work",
            "core/test_export_publish.py::test_the_disk_of_a_local_server_needs_room_by_its_version",
            "core/test_export_handover.py::test_too_little_room_is_told_before_anything_is_sent",
        ),
    ),
    6: (
        "neither adapters nor quantize nor safetensors are ever sent",
        (
            "core/test_export_publish.py::test_publish_replaces_a_model_in_one_go_and_leaves_nothing_else",
            "core/test_ollama_double.py::test_the_double_is_strict",
        ),
    ),
    7: (
        "memory of the merge is bounded, and what needs more is known before",
        (
            "core/test_export_gguf.py::test_memory_does_not_grow_with_the_model_and_a_stop_is_asked_for_often",
            "core/test_export_sources.py::test_a_model_too_large_to_be_asked_is_proved_by_its_file_alone",
        ),
    ),
    # the merge
    8: (
        "the base is the 16-bit checkpoint",
        (
            "core/test_export_merge.py::test_quantized_weights_are_refused",
            "core/test_export_foreign.py::test_a_base_in_4_bit_names_its_original",
        ),
    ),
    9: (
        "the merged model computes what base and adapter compute",
        ("core/test_export_merge.py::test_an_exported_file_answers_as_peft",),
    ),
    10: (
        "rsLoRA, DoRA, saved modules, added tokens, tied embeddings",
        (
            "core/test_export_merge.py::test_merged_rows_equal_those_that_peft_merges",
            "core/test_export_merge.py::test_whole_modules_biases_and_tokens_equal_those_that_peft_merges",
            "core/test_export_merge.py::test_a_resized_shared_vocabulary_stays_one",
        ),
    ),
    11: (
        "rows of the embedding = size of the vocabulary = tokens of the file",
        (
            "core/test_export_merge.py::test_a_resized_vocabulary_has_the_rows_of_the_adapter",
            "core/test_export_tokenizer.py::test_a_token_without_an_embedding_row_is_refused",
            "core/test_export_tokenizer.py::test_ids_without_a_token_are_filled",
        ),
    ),
    # the file
    12: (
        "rope as in the config, whichever transformers wrote it",
        (
            "core/test_export_gguf.py::test_configs_of_transformers_4_and_5_say_the_same",
            "core/test_export_families.py::test_llama_cpp_computes_what_transformers_computes",
        ),
    ),
    13: (
        "token ids are llama.cpp's",
        (
            "core/test_export_tokenprobe.py::test_the_first_guess_reads_every_text_in_a_chat_as_the_training_did",
        ),
    ),
    14: (
        "ids of bos, eos, eot, pad; the end of a turn ends the answer",
        (
            "core/test_export_tokenizer.py::test_token_types_gaps_and_ids",
            "core/test_export_tokenprobe.py::test_a_turn_end_at_which_llama_cpp_goes_on_is_refused",
        ),
    ),
    15: (
        "the template in the file is the pinned one of the training",
        (
            "core/test_export_template.py::"
            "test_nothing_before_the_template_changes_a_character_of_what_it_renders",
            "core/test_export_gguf.py::test_the_file_is_what_it_is_said_to_be",
        ),
    ),
    16: (
        "llama.cpp loads it and continues as the tuned model",
        (
            "core/test_export_gguf.py::test_llama_cpp_computes_what_transformers_computes",
            "core/test_export_types.py::test_llama_cpp_answers_alike_from_4_to_6_bit",
        ),
    ),
    17: (
        "general.file_type and general.name",
        ("core/test_export_gguf.py::test_the_file_is_what_it_is_said_to_be",),
    ),
    18: (
        "an interrupted write leaves no file under the final name",
        (
            "core/test_export_gguf.py::"
            "test_kill_9_leaves_no_file_under_the_final_name_and_the_next_export_cleans_up",
        ),
    ),
    # the template
    19: (
        "no template of the registry takes its place",
        (
            "core/test_export_template.py::test_no_template_that_ollama_knows_is_near_by_length_alone",
            "core/test_ollama_double.py::test_a_template_close_to_a_known_one_is_replaced",
            "core/test_export_handover.py::test_the_model_in_ollama_is_proved_to_be_the_tuned_one",
        ),
    ),
    20: (
        "the same bytes whatever a client asks for, on any day",
        (
            "core/test_data_pins.py::test_no_argument_changes_what_a_pinned_template_renders",
            "core/test_export_template.py::"
            "test_llama_cpp_renders_what_the_training_saw_whatever_a_client_asks_for",
        ),
    ),
    21: (
        "conversations of all shapes render as in the training",
        (
            "core/test_export_template.py::"
            "test_llama_cpp_renders_what_the_training_saw_whatever_a_client_asks_for",
            "core/test_export_handover.py::test_the_model_in_ollama_is_proved_to_be_the_tuned_one",
            "core/test_export_handover.py::test_another_prompt_than_the_trainings_gets_no_name",
        ),
    ),
    22: (
        "exactly one BOS among the tokens",
        (
            "core/test_export_tokenizer.py::test_a_prompt_has_exactly_the_bos_it_was_trained_with",
            "core/test_export_handover.py::test_a_prompt_with_a_token_too_many_gets_no_name",
        ),
    ),
    23: (
        "no system prompt unless it was chosen",
        (
            "core/test_export_handover.py::test_a_system_prompt_is_stored_only_where_it_was_asked_for",
            "core/test_export_handover.py::test_a_setting_that_got_lost_gets_no_name",
        ),
    ),
    24: (
        "a renderer of the server's own is told with what was found",
        (
            "core/test_ollama_double.py::test_a_family_with_a_renderer_gets_it_and_its_stop",
            "core/test_export_handover_remarks.py::"
            "test_a_renderer_of_the_servers_own_is_told_with_what_it_makes_of_the_prompts",
        ),
    ),
    25: (
        "before 0.30 a Go template, verified, or a word to update",
        (
            "core/test_export_handover.py::test_before_0_30_a_go_template_is_sent_and_checked",
            "core/test_export_handover.py::test_a_template_that_has_no_go_form_asks_for_a_newer_ollama",
        ),
    ),
    # upload and create
    26: (
        "HEAD first; what is there is not sent again",
        (
            "core/test_export_ollama.py::test_a_blob_that_exists_is_not_sent_again",
            "core/test_ollama_double.py::test_a_post_of_a_blob_without_a_question_first_fails_the_test",
        ),
    ),
    27: (
        "progress to the byte, a stop within a second, another try after a lost connection",
        (
            "core/test_export_ollama.py::test_a_file_is_sent_whole_with_byte_progress",
            "core/test_export_ollama.py::test_an_upload_can_be_stopped",
            "core/test_export_ollama.py::test_a_dropped_connection_is_tried_again_from_the_start",
        ),
    ),
    28: (
        "the digest is known; a mismatch is shown",
        (
            "core/test_export_ollama.py::test_other_bytes_than_promised_are_refused_in_the_servers_words",
            "core/test_export_gguf.py::test_the_file_is_what_it_is_said_to_be",
        ),
    ),
    29: (
        "line by line; an error within 200, or no success, is a failure",
        (
            "core/test_export_ollama.py::test_an_error_in_the_middle_of_the_stream_is_a_failure",
            "core/test_export_ollama.py::test_a_stream_that_ends_without_success_is_a_failure",
        ),
    ),
    30: (
        "stop is a list, parameters are known and typed, num_ctx is the trained length",
        (
            "core/test_export_ollama.py::test_a_parameter_of_the_wrong_type_never_leaves",
            "core/test_ollama_double.py::test_a_stored_parameter_of_the_wrong_type_breaks_every_request",
            "core/test_export_handover.py::test_the_model_in_ollama_is_proved_to_be_the_tuned_one",
        ),
    ),
    31: (
        "an unknown status is shown and harmless",
        ("core/test_export_ollama.py::test_an_unknown_status_is_shown_and_harmless",),
    ),
    32: (
        "200 and 201 are both fine for a blob",
        ("core/test_export_ollama.py::test_both_answers_to_a_file_are_fine",),
    ),
    33: (
        "the Modelfile is read back unchanged by Ollama's rules",
        (
            "core/test_modelfile.py::test_a_text_is_read_back_unchanged",
            "core/test_modelfile.py::test_every_text_of_quotes_blanks_and_breaks_is_kept_or_refused",
            "core/test_modelfile.py::test_a_text_that_the_format_cannot_hold_is_left_out_visibly",
        ),
    ),
    # afterwards
    34: (
        "listed, and shown as it was sent",
        (
            "core/test_export_handover.py::test_a_setting_that_got_lost_gets_no_name",
            "core/test_export_handover_remarks.py::test_sampling_values_that_appear_by_themselves_are_told",
            "core/test_export_publish.py::test_a_model_that_is_not_listed_afterwards_is_a_failure",
        ),
    ),
    35: (
        "an answer at temperature 0 stops and holds no mark of the template",
        (
            "core/test_export_ollama_answers.py::test_a_test_question_is_answered_at_temperature_0",
            "core/test_export_handover.py::test_answers_that_never_end_get_no_name",
            "core/test_export_handover.py::test_marks_of_the_template_in_an_answer_get_no_name",
        ),
    ),
    36: (
        "the answers are the tuned model's",
        (
            "core/test_export_handover.py::test_the_model_in_ollama_is_proved_to_be_the_tuned_one",
            "core/test_export_handover_remarks.py::test_other_answers_are_a_remark",
            "core/test_export_handover_remarks.py::test_coarse_types_are_judged_by_the_beginning",
        ),
    ),
    37: (
        "why it does not load, with what helps",
        (
            "core/test_export_ollama_answers.py::test_a_model_that_does_not_load_is_quoted_with_what_helps",
            "core/test_export_handover.py::test_a_model_that_does_not_load_gets_no_name_and_advice",
        ),
    ),
    38: (
        "the tried model leaves the memory",
        (
            "core/test_export_publish.py::test_publish_replaces_a_model_in_one_go_and_leaves_nothing_else",
            "core/test_export_handover_remarks.py::test_a_model_that_stays_in_memory_is_a_remark",
        ),
    ),
    39: (
        "`ollama run NAME` is told",
        (
            "core/test_export_handover.py::test_the_model_in_ollama_is_proved_to_be_the_tuned_one",
            "core/test_modelfile.py::test_the_commands_survive_a_shell",
        ),
    ),
    40: (
        "a failed export never replaces a working model",
        (
            "core/test_export_publish.py::test_a_failed_publish_leaves_the_old_model",
            "core/test_export_handover.py::test_an_older_model_survives_a_failure",
            "core/test_ollama_kill.py::"
            "test_a_killed_hand_over_leaves_the_old_model_and_a_second_try_succeeds",
        ),
    ),
    # memory of the GPU
    41: (
        "what Ollama holds is shown with how to free it, and seen to be freed",
        (
            "core/test_machine_ollama.py::test_a_server_is_found_with_its_version_and_loaded_models",
            "core/test_plan_checks.py::test_gpu_memory_that_ollama_holds_is_named_with_how_to_free_it",
            "core/test_export_ollama_answers.py::test_a_loaded_model_is_unloaded_and_seen_to_be",
        ),
    ),
    42: (
        "no process of Ollama's is ever killed",
        ("core/test_export_handover.py::test_a_process_of_ollama_is_left_alone",),
    ),
    43: (
        "the memory of another host is not this box's",
        (
            "core/test_machine_ollama.py::test_local_is_this_machine_only",
            "core/test_plan_gguf_types.py::test_the_memory_of_another_host_is_not_judged",
        ),
    ),
}


@lru_cache(maxsize=64)
def _functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def test_all_43_lines_are_there() -> None:
    assert sorted(CHECKLIST) == list(range(1, 44))


@pytest.mark.parametrize("number", sorted(CHECKLIST))
def test_every_line_is_held_by_tests_that_exist(number: int) -> None:
    line, names = CHECKLIST[number]
    assert names, line
    for name in names:
        file, _, test = name.partition("::")
        assert test in _functions(TESTS / file), f"{number}. {line}: there is no {name}"
