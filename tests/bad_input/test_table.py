"""Which tests show what becomes of which bad input."""

from __future__ import annotations

from typing import Final

import pytest

from tests.docs.test_guarantees import missing

_CLI: Final = "tests/process/test_worker_cli.py::"
_TARGET: Final = "tests/unit/test_target.py::"
_SETTINGS: Final = "tests/unit/test_settings.py::"
_CODEC: Final = "tests/unit/test_codec.py::"
_RUNS: Final = "tests/conformance/test_runs.py::"
_HERE: Final = "tests/bad_input/"
_PROGRAMS: Final = "tests/bad_input/test_programs.py::"
_SERVERS: Final = "tests/bad_input/test_servers.py::"

#: What is given -> the tests that show what comes of it.
TABLE: Final[dict[str, list[str]]] = {
    "B1 a worker without a target": [
        _CLI + "test_wrong_usage_shows_the_usage_and_exits_2",
    ],
    "B2 a module without an object, with several workflows in it": [
        _TARGET + "test_a_module_without_an_object_lists_its_workflows",
        _CLI + "test_a_wrong_setting_or_target_is_one_line_and_exit_3",
    ],
    "B3 a module or object that is not there, or misspelt": [
        _CLI + "test_a_wrong_setting_or_target_is_one_line_and_exit_3",
        _TARGET + "test_a_misspelt_module_names_the_nearest",
        _TARGET + "test_a_missing_dependency_shows_the_chain_of_imports",
    ],
    "B4 an import that raises": [
        _CLI + "test_an_import_that_raises_shows_the_user_s_traceback_only",
        _TARGET + "test_a_syntax_error_shows_its_line",
    ],
    "B5 a class is built; what is no workflow is refused": [
        _TARGET + "test_a_class_is_built_and_called_by_its_class",
        _TARGET + "test_what_is_no_workflow_is_named",
        _TARGET + "test_a_class_that_needs_arguments_asks_for_an_instance_or_a_factory",
    ],
    "B6 a wrong URL": [
        _SETTINGS + "test_a_bad_url_is_refused_without_showing_the_password",
        _CLI + "test_a_wrong_setting_or_target_is_one_line_and_exit_3",
    ],
    "B7 a server that is away, a wrong password, TLS on one side only": [
        _SERVERS + "test_a_server_that_is_away_is_named_with_its_place",
        _CLI + "test_a_wrong_password_is_not_an_outage",
        _SERVERS + "test_a_tls_url_of_a_plain_server_is_called_that",
        _SERVERS + "test_a_plain_url_of_a_tls_server_is_called_that",
        _SERVERS + "test_a_certificate_that_nobody_vouches_for_is_refused",
        _SERVERS + "test_a_certificate_of_another_server_is_refused",
        _SERVERS + "test_a_sentinel_that_wants_another_password_is_named_with_where_it_stands",
    ],
    "B8 a user without a right": [
        _SERVERS + "test_a_missing_right_is_named_with_the_command_that_prints_it",
        _SERVERS + "test_the_doctor_names_what_this_user_may_not_do",
    ],
    "B9 a server that is too old, a replica, in a cluster, throws work away, or has no log": [
        _SERVERS + "test_a_server_that_is_too_old_is_refused",
        _SERVERS + "test_a_server_that_cannot_keep_work_is_refused",
        _CLI + "test_a_server_without_a_log_is_used_with_one_warning",
    ],
    "B10 a number out of its range": [
        _SETTINGS + "test_a_bad_value_is_named_with_its_origin_and_what_is_allowed",
        _CLI + "test_a_wrong_setting_or_target_is_one_line_and_exit_3",
    ],
    "B11 an unknown key in pyproject.toml": [
        _SETTINGS + "test_an_unknown_key_of_the_file_says_what_was_meant",
        _SETTINGS + "test_an_unknown_variable_says_what_was_meant",
        _CLI + "test_an_unknown_setting_says_what_was_meant",
    ],
    "B12 a step without annotations, steps and events that do not fit": [
        "tests/unit/test_decorators.py::test_a_return_type_is_required",
        "tests/unit/test_graph.py::test_every_problem_of_the_graph_is_listed_at_once",
        _CLI + "test_a_workflow_that_cannot_work_exits_3_with_its_reason",
        _PROGRAMS + "test_a_step_without_a_return_annotation",
    ],
    "B13 a workflow that workers cannot import, a run that nobody serves": [
        "tests/unit/test_check.py::test_a_class_inside_a_function_and_what_it_uses_are_found",
        _RUNS + "test_a_run_that_no_worker_serves_waits_and_a_warning_says_so",
        _RUNS + "test_a_name_that_nobody_announced_lists_what_is_served",
        _PROGRAMS + "test_a_workflow_that_no_worker_can_import_waits_for_one_that_can",
        _PROGRAMS + "test_a_name_that_nobody_announced",
    ],
    "B14 a field that cannot travel": [
        _CODEC + "test_a_refusal_names_path_type_and_cure",
        "tests/conformance/test_authoring.py::"
        "test_a_value_that_cannot_travel_fails_the_step_that_emits_it",
        "tests/conformance/test_send_event.py::"
        "test_a_value_that_cannot_travel_is_an_error_where_it_is_sent",
        _PROGRAMS + "test_a_value_that_cannot_travel_is_refused_in_the_step_that_emits_it",
    ],
    "B15 big integers, NaN, surrogates, dates, sets, enums ...": [
        _CODEC + "test_the_edges_of_each_type_come_back_exact",
        _CODEC + "test_a_value_comes_back_exact_in_a_typed_field_and_in_a_dynamic_one",
    ],
    "B16 too large, too deep, too long": [
        _CODEC + "test_the_size_limit_is_exact_in_both_directions",
        _CODEC + "test_the_depth_limit_is_exact_in_both_directions",
        _CODEC + "test_a_list_of_two_million_parts_is_refused",
        _PROGRAMS + "test_a_start_event_that_is_too_deep_starts_nothing",
    ],
    "B17 a dict that looks like a type": [
        _CODEC + "test_a_user_dict_never_looks_like_a_type",
        "tests/unit/test_serializers.py::test_a_value_comes_back_as_it_was",
        "tests/trust/test_decoding.py::"
        "test_no_payload_makes_the_decoder_import_call_or_open_anything",
    ],
    "B18 a text that is a pickle": [
        _HERE + "test_values.py::test_a_text_that_is_a_pickle_stays_a_text",
    ],
    "B19 a serializer of pickles": [
        "tests/unit/test_serializers.py::test_pickles_are_refused_with_the_reason",
        _PROGRAMS + "test_a_serializer_of_pickles",
    ],
    "B20 a run id that is none": [
        _RUNS + "test_run_ids_are_checked",
        _RUNS + "test_only_what_can_be_an_id_is_attached_to",
        _HERE + "test_values.py::test_no_name_reaches_a_key_unescaped",
        _PROGRAMS + "test_a_run_id_that_is_none",
    ],
    "B21 the id of a run with other arguments": [
        _RUNS + "test_start_with_the_id_of_other_arguments_is_a_conflict",
        _PROGRAMS + "test_the_id_of_a_run_with_other_arguments",
    ],
    "B22 an event for an unknown run or step, or after the end; one that nobody accepts is dropped": [
        _RUNS + "test_an_id_that_names_no_run_is_an_error",
        "tests/conformance/test_send_event.py::"
        "test_a_wrong_target_is_an_error_where_the_event_is_sent",
        "tests/conformance/test_send_event.py::test_after_the_end_an_event_is_refused_or_dropped",
        "tests/conformance/test_send_event.py::"
        "test_an_event_that_nobody_accepts_is_dropped_and_the_run_idles",
        _PROGRAMS + "test_a_run_that_is_not_recorded",
        _PROGRAMS + "test_an_event_after_the_end_or_for_a_step_that_does_not_take_it",
    ],
    "B23 two answers to one question, an answer before the question": [
        "tests/conformance/test_wait_for_event.py::"
        "test_identical_waits_of_one_execution_share_their_answer",
        "tests/conformance/test_wait_for_event.py::"
        "test_an_event_from_before_the_question_is_no_answer",
    ],
    "B24 odd lists for collect_events": [
        "tests/conformance/test_collect_events.py::test_nothing_expected_is_answered_at_once",
        "tests/conformance/test_collect_events.py::"
        "test_events_beyond_what_is_needed_and_of_other_types_are_dropped",
        "tests/conformance/test_collect_events.py::"
        "test_one_step_may_join_the_same_event_in_two_ways",
    ],
    "B25 odd numbers of workers and times": [
        "tests/unit/test_decorators.py::test_num_workers_is_a_positive_integer",
        "tests/unit/test_decorators.py::test_a_timeout_is_a_positive_time_or_none",
        _PROGRAMS + "test_a_number_out_of_its_range_at_a_step",
        _PROGRAMS + "test_a_number_out_of_its_range_at_a_workflow",
    ],
    "B26 the store used in a wrong way": [
        "tests/conformance/test_store.py::test_wrong_paths_are_errors_that_name_them",
        "tests/conformance/test_store.py::test_a_write_inside_an_edit_is_refused",
        "tests/conformance/test_store.py::"
        "test_a_typed_state_has_its_defaults_and_refuses_unknown_fields",
        _PROGRAMS + "test_the_store_used_in_wrong_ways",
    ],
    "B29 data of a run that is corrupted": [
        _HERE + "test_corrupt_runs.py::test_a_key_of_a_wrong_type_ends_in_its_own_run",
        _HERE + "test_corrupt_runs.py::"
        "test_a_record_that_is_no_hash_is_an_error_for_who_asks_for_that_run",
        _HERE + "test_corrupt_runs.py::"
        "test_entries_that_are_no_deliveries_are_taken_out_and_the_next_is_run",
        _HERE + "test_corrupt_runs.py::test_a_lost_group_is_made_again",
        _HERE + "test_corrupt_fleet.py::test_an_entry_that_nobody_of_ours_wrote_disturbs_nobody",
        _HERE
        + "test_corrupt_runs.py::"
        + "test_whatever_of_a_run_is_damaged_the_others_go_on_and_it_can_be_removed",
        "tests/process/test_doctor.py::test_an_illness_is_found_with_its_cure",
        "tests/process/test_operator.py::"
        "test_the_doctor_finds_an_orphan_a_wrong_type_and_a_step_that_nobody_serves",
    ],
    "B30 a clock that differs, two workers alike, a file or port that cannot be had, no UTF-8": [
        _SERVERS + "test_a_clock_that_differs_is_one_warning",
        _SERVERS + "test_two_workers_of_one_host_and_folder_are_two_consumers",
        _SERVERS + "test_a_health_file_that_cannot_be_written_is_refused_before_anything_is_read",
        _SERVERS + "test_a_port_that_is_taken_is_refused_before_anything_is_read",
        _SERVERS + "test_a_terminal_without_the_letters_of_a_line_gets_it_with_escapes",
    ],
}


@pytest.mark.parametrize("given", TABLE)
def test_every_bad_input_has_a_test_that_exists(given: str) -> None:
    assert TABLE[given]
    assert missing(TABLE[given]) == []


def test_the_table_is_complete() -> None:
    numbers = [int(given.split()[0][1:]) for given in TABLE]
    assert numbers == [*range(1, 27), 29, 30]
