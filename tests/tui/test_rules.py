"""The 25 rules of the interface, each with the tests that prove it; a rule without one fails here.

A test is named `file::function`, the file from the folder of tests. What is in it is for the reader to judge:
this module only makes sure that no rule is forgotten and that no test named here has gone.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

RULES: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "Every step of the wizard shows where it is: `Step n of 9` and the list with done, current, to come.",
        (
            "tui/test_wizard_steps.py::test_every_step_says_where_it_is_and_what_enter_and_escape_do",
            "tui/test_snapshots_setup.py::test_step",
        ),
    ),
    2: (
        "Enter goes on and Esc goes back in every step, and both stand at the bottom in words.",
        ("tui/test_wizard_steps.py::test_enter_goes_on_and_escape_goes_back_in_every_step_of_the_setup",),
    ),
    3: (
        "Back and forward again changes no answer.",
        ("tui/test_wizard_steps.py::test_back_and_forward_again_changes_no_answer",),
    ),
    4: (
        "Every field has a value from the first frame; Enter alone gives a valid plan.",
        ("tui/test_wizard_steps.py::test_enter_through_the_steps_gives_a_plan_that_fits",),
    ),
    5: (
        "A recommended value has its reason beside it, from the numbers that chose it, in 80 characters.",
        (
            "tui/test_wizard_settings.py::test_each_field_of_the_first_level_has_a_value_and_its_reason",
            "tui/test_guidance.py::test_every_reason_is_short_and_names_the_number_it_rests_on",
        ),
    ),
    6: (
        "A changed value says so and what is recommended; one key restores it.",
        (
            "tui/test_wizard_settings.py::"
            "test_a_changed_value_is_marked_moves_the_estimate_and_can_be_restored",
            "tui/test_wizard_proofs.py::"
            "test_one_key_restores_all_that_was_changed_and_how_data_is_read_stays",
        ),
    ),
    7: (
        "A value is judged when its field is left and on Enter, below the field, with what is allowed.",
        (
            "tui/test_wizard_settings.py::test_enter_on_a_wrong_value_keeps_the_focus_and_goes_nowhere",
            "tui/test_wizard_settings.py::test_what_is_allowed_is_said_in_one_sentence_with_an_example",
        ),
    ),
    8: (
        "No judgement while somebody still types for the first time.",
        (
            "tui/test_wizard_settings.py::"
            "test_a_wrong_value_is_told_when_the_field_is_left_not_while_it_is_typed",
        ),
    ),
    9: (
        "What changes memory or time changes the estimate on the same screen.",
        (
            "tui/test_wizard_settings.py::test_the_estimate_follows_every_key",
            "tui/test_wizard_proofs.py::test_an_edit_has_its_estimate_and_is_planned_once",
        ),
    ),
    10: (
        "A plan that does not fit starts only after a typed yes; the nearest that fits is offered.",
        (
            "tui/test_wizard_settings.py::test_a_plan_that_does_not_fit_starts_only_after_a_typed_yes",
            "tui/test_wizard_settings.py::test_f_takes_the_nearest_plan_that_fits",
        ),
    ),
    11: (
        "Slow work says what it does, Esc ends it, and keys stay quick meanwhile.",
        (
            "tui/test_slow_work.py::test_a_long_file_says_how_far_it_is_read_and_keys_are_answered",
            "tui/test_slow_work.py::test_escape_leaves_a_reading_and_another_file_ends_it",
            "tui/test_run_try_it.py::test_esc_first_stops_the_answer_and_then_goes_back",
            "tui/test_run_try_it.py::test_esc_stops_the_eight_with_what_there_is",
            "tui/test_plain_runs.py::test_ctrl_c_ends_slow_work_and_not_the_conversation",
        ),
    ),
    12: (
        "Nothing is downloaded, started or written elsewhere before the summary is confirmed.",
        (
            "tui/test_wizard_proofs.py::"
            "test_nothing_is_fetched_started_or_written_elsewhere_before_the_summary_is_confirmed",
            "tui/test_rules_everywhere.py::test_no_window_of_the_setup_starts_or_writes_anything",
            "tui/test_rules_everywhere.py::test_no_plain_question_of_the_setup_starts_or_writes_anything",
            "tui/test_rules_everywhere.py::test_opening_a_screen_of_a_run_starts_and_writes_nothing",
        ),
    ),
    13: (
        "The summary's command runs as it stands and gives the same settings.",
        (
            "tui/test_wizard_settings.py::test_review_shows_everything_and_a_command_that_works_as_it_stands",
            "tui/test_wizard_proofs.py::"
            "test_the_command_on_the_review_runs_as_it_is_shown_and_gives_the_same_run",
        ),
    ),
    14: (
        "What the wizard can do a command can do; without a terminal nothing is asked.",
        (
            "tui/test_cli.py::test_the_wizard_without_a_terminal_names_the_commands",
            "tui/test_plain_steps.py::test_flags_give_the_same_run_yaml_without_questions",
            "tui/test_rules_everywhere.py::test_what_a_key_does_beyond_its_window_a_command_does_too",
            "tui/test_cli.py::test_deleting_without_a_terminal_needs_yes",
            "tui/test_cli_export.py::test_a_model_of_that_name_is_replaced_only_after_a_yes",
        ),
    ),
    15: (
        "A killed wizard opens again at its step with its answers.",
        (
            "e2e/test_terminal.py::test_a_killed_wizard_reopens_where_it_was",
            "tui/test_wizard_terminal.py::test_a_killed_wizard_reopens_at_its_step",
        ),
    ),
    16: (
        "Leaving loses nothing, so nothing is asked; a live run is named with the way back.",
        (
            "e2e/test_terminal.py::test_a_closed_window_leaves_the_run_going_and_attach_shows_it",
            "tui/test_run_training.py::test_detach_leaves_the_run_alone_and_says_how_to_return",
        ),
    ),
    17: (
        "Stop is another key than Detach, asks once, says what is saved, and Enter means no.",
        (
            "tui/test_run_training.py::test_stop_asks_once_and_only_y_says_yes",
            "tui/test_run_runs.py::test_no_key_of_the_list_stops_or_deletes_by_accident",
        ),
    ),
    18: (
        "Questions that destroy name the thing and its size; only y says yes.",
        (
            "tui/test_run_runs.py::test_delete_names_the_run_and_its_size_and_only_y_says_yes",
            "tui/test_plain_runs.py::test_a_model_that_ollama_has_is_replaced_only_after_a_yes",
        ),
    ),
    19: (
        "`?` or F1 explains the focused field in plain words; every field has such a text.",
        (
            "tui/test_wizard_settings.py::test_help_explains_the_focused_field",
            "tui/test_wizard_settings.py::test_every_field_and_every_step_has_help",
            "tui/test_guidance.py::"
            "test_every_field_says_what_it_is_what_other_values_do_and_when_to_change_it",
            "tui/test_guidance.py::test_the_help_of_whatever_has_the_focus_is_there",
            "tui/test_guidance.py::"
            "test_every_problem_of_the_data_says_what_it_means_what_becomes_of_it_and_what_to_do",
        ),
    ),
    20: (
        "Letters, arrows, Tab, Enter, Esc and F keys do everything; no key that terminals take away.",
        (
            "tui/test_rules_everywhere.py::"
            "test_no_key_of_any_screen_or_window_is_one_that_terminals_take_away",
            "tui/test_rules_everywhere.py::test_whatever_takes_clicks_takes_keys_too",
            "tui/test_paste.py::test_nothing_that_is_pasted_into_the_wizard_is_a_key",
        ),
    ),
    21: (
        "80x24 shows each step, 60x18 works, and below that one sentence says so.",
        (
            "tui/test_snapshots_setup.py::test_step",
            "tui/test_snapshots_guide.py::test_step_in_a_small_window",
            "tui/test_snapshots_guide.py::test_export_in_a_small_window",
            "tui/test_snapshots_guide.py::test_done_in_a_small_window",
            "tui/test_snapshots_run.py::test_training_in_a_small_window",
            "tui/test_snapshots_training.py::test_memory",
            "tui/test_snapshots_try_it.py::test_conversation",
            "tui/test_snapshots_runs.py::test_runs_in_a_small_window_with_marks",
            "tui/test_wizard_steps.py::test_a_window_that_is_too_small_says_so_in_one_sentence",
        ),
    ),
    22: (
        "Readable without colours and with sixteen: signs and words carry the meaning.",
        (
            "tui/test_snapshots_setup.py::test_no_colour",
            "tui/test_snapshots_run.py::test_training_without_colour",
            "tui/test_snapshots_guide.py::test_sixteen_colours",
            "tui/test_snapshots_guide.py::test_review_without_colour",
            "tui/test_snapshots_training.py::test_sixteen_colours",
            "tui/test_snapshots_try_it.py::test_several_in_few_colours",
            "tui/test_themes.py::test_every_text_of_the_setup_can_be_read_in_every_theme",
            "tui/test_themes.py::test_every_text_of_a_run_can_be_read_in_every_theme",
            "tui/test_themes.py::test_runs_compared_and_the_windows_over_them_can_be_read_in_every_theme",
            "tui/test_themes.py::test_selected_text_can_be_read_and_seen_in_sixteen_colours",
        ),
    ),
    23: (
        "An error says what happened, what it means and what to do; `e` writes the details to a file.",
        (
            "tui/test_wizard_windows.py::test_e_writes_the_details_of_an_error_to_a_file",
            "tui/test_crash.py::test_a_real_crash_shows_three_lines_and_no_secret",
            "tui/test_doctor.py::"
            "test_the_whole_doctor_on_this_box_with_a_library_that_crashes_and_one_that_raises",
        ),
    ),
    24: (
        "No unexplained jargon on the first level; numbers with units; one word for one thing.",
        (
            "tui/test_guidance.py::test_the_first_level_explains_its_words",
            "tui/test_guidance.py::test_reasons_of_the_first_level_use_no_jargon",
            "tui/test_guidance.py::test_one_thing_has_one_name_in_the_help",
            "tui/test_guidance.py::test_no_setup_screen_shows_jargon_or_bare_figures",
            "tui/test_run_windows.py::test_every_part_of_a_runs_memory_has_a_plain_word",
        ),
    ),
    25: (
        "The end is a next step: the name in Ollama, the command, before and after, where all is.",
        (
            "tui/test_run_done.py::test_the_end_is_the_command_with_what_was_learned_and_where_it_is",
            "tui/test_wizard_proofs.py::test_the_end_names_where_everything_is",
            "tui/test_wizard_proofs.py::test_train_again_opens_the_settings_of_the_run",
            "tui/test_plain_terminal.py::test_from_the_first_question_to_a_proved_export",
        ),
    ),
}


def names_in(file: Path) -> set[str]:
    """The names of a module's test functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in functions if node.name.startswith("test_")}


def test_no_rule_is_forgotten() -> None:
    assert list(RULES) == list(range(1, 26))


@pytest.mark.parametrize("number", RULES)
def test_every_rule_has_a_test_that_is_there(number: int) -> None:
    _, proofs = RULES[number]
    assert proofs, "no test proves this rule"
    for proof in proofs:
        file, _, name = proof.partition("::")
        assert name in names_in(TESTS / file), proof
