"""What takes long, and runs with `--flags sweep` only."""

# notebooks that take eight seconds and more on two cores with AVX2, most of it for their figures on a real model
HEAVY_NOTEBOOKS = set(
    """
    api cli house study watching workers advice/00_example advice/02_search advice/03_recommend advice/04_sweep
    core/12_leases data/01_wiki data/02_texts deploy/02_compressed_tensors deploy/03_openvino deploy/04_onnx
    deploy/05_gguf deploy/07_torchao deploy/11_generating deploy/16_served deploy/17_served_subject
    deploy/23_reference_window deploy/27_shadow distill/03_students distill/04_vocabularies distill/10_distill
    distill/11_on_policy distill/12_teachers distill/13_texts evaluate/01_statistics evaluate/07_perplexity
    evaluate/08_fidelity evaluate/10_comparison evaluate/11_tasks evaluate/12_scoring evaluate/13_writing
    evaluate/14_task_probe evaluate/15_calibration evaluate/16_coverage evaluate/17_noise_floor evaluate/21_bias
    evaluate/22_security evaluate/23_factuality evaluate/25_privacy evaluate/26_groups evaluate/27_adversarial
    evaluate/28_formats evaluate/29_long_inputs measure/02_percentiles measure/03_latency measure/04_memory
    measure/05_scenarios measure/06_throughput measure/07_cold_start measure/10_flops measure/11_ceilings
    measure/12_roofline measure/13_energy measure/14_cost measure/15_layer_speed models/05_precision
    models/09_low_rank models/17_equivalence models/21_lenet papers/01_gptq papers/03_deep_compression
    papers/04_hinton_mnist papers/05_wanda papers/06_sparsegpt papers/07_owl papers/08_shortgpt papers/09_hqq
    papers/10_llm_int8 papers/11_smoothquant papers/12_quarot papers/13_awq papers/14_flips papers/15_forgotten
    papers/16_exploited papers/17_heads papers/18_compressed_trust papers/20_loyalty papers/21_movement
    papers/22_gkd papers/23_minitron papers/24_unlearning prune/04_permutation prune/05_ria prune/10_low_rank
    prune/12_lottery prune/21_width prune/23_hidden
    prune/30_recovery prune/31_gradual quantize/04_gptq quantize/06_awq quantize/07_smoothquant quantize/08_rotation
    quantize/12_codebook quantize/14_tuned_levels quantize/21_int8 quantize/22_llm_int8 quantize/23_kv_cache
    quantize/30_mixed quantize/32_autoround quantize/33_qat quantize/34_repair quantize/36_scale_tune
    report/00_example report/05_claims report/06_pictures report/07_first_screen report/14_changes report/15_page
    report/16_dossier runtimes/02_openvino runtimes/03_onnxruntime runtimes/04_native runtimes/05_graph_files
    site/09___main__ train/02_trainer tutorials/10_two_copies tutorials/12_writing_helper
    """.split()
)

# tests that take as long: whole functions, or one of their cases; most start processes or runtimes
HEAVY_TESTS = """
    test_advice.py::test_the_command_says_first_what_to_take
    test_any_pair.py::test_one_dossier_in_which_the_same_weights_agree
    test_attacks_machine.py::test_the_memory_a_walk_needs_is_what_it_takes
    test_attacks_machine.py::test_the_process_that_measures_memory_is_safe
    test_attacks_models.py::test_killed_between_the_renames
    test_attacks_study.py::test_a_study_of_the_users_is_never_replaced
    test_attacks_study.py::test_another_tokenizer_and_other_labels_are_measured_anew
    test_attacks_study.py::test_results_of_another_layout_are_named_and_measured_again
    test_attacks_study.py::test_something_else_in_the_place_of_a_file
    test_attacks_study.py::test_the_page_is_written_whatever_becomes_of_the_output
    test_card.py::test_records_pass_the_schema_of_every_eval_ever_itself
    test_cli.py::test_a_run_stopped_by_ctrl_c_goes_on_by_the_command_it_prints
    test_cli.py::test_a_study_of_own_methods_imports_their_file
    test_distill.py::test_a_killed_run_goes_on_with_the_same_losses
    test_explorer.py::test_ten_thousand_items_by_mouse_and_keyboard
    test_explorer.py::test_what_is_planted_in_items_and_names_does_not_run
    test_export_formats.py::test_a_reader_that_forgets_a_window_is_noticed_and_named
    test_export_formats.py::test_files_that_are_damaged_are_named[onnx]
    test_export_formats.py::test_files_that_are_damaged_are_named[openvino]
    test_export_formats.py::test_is_read_by_another_process
    test_export_formats.py::test_models_of_every_type
    test_export_formats.py::test_rows_are_longer_than_what_changes_with_their_length
    test_fuzz.py::test_any_input_works_or_says_why_not[arguments]
    test_fuzz.py::test_any_input_works_or_says_why_not[files]
    test_graph_files.py::test_a_folder_of_optimum_decodes_with_its_cache
    test_graph_files.py::test_a_graph_is_no_model_to_be_changed
    test_itself.py::test_a_model_and_its_graph
    test_itself.py::test_a_model_and_itself[cold_start]
    test_itself.py::test_a_model_and_itself[layer_speed]
    test_itself.py::test_a_model_and_itself[memory]
    test_outside.py::test_an_export_format
    test_outside.py::test_the_help_names_the_format_without_importing_it
    test_processes.py::test_same_as_one_process
    test_right_methods.py::test_a_method_streams_bit_for_bit_or_is_refused_by_name
    test_right_methods.py::test_every_number_is_refused_by_name_or_works
    test_scaffold.py::test_each_kind_is_a_notebook_of_this_repository_at_once
    test_scaffold.py::test_the_site_of_a_book_has_all_its_pages
    test_scaffold.py::test_the_tests_of_a_book_pass
    test_serve.py::test_a_monitor_rolls_a_drifting_copy_back
    test_serve.py::test_a_process_told_to_stop_answers_what_it_has_begun
    test_serve.py::test_a_served_copy_has_its_original_in_the_shadow
    test_serve.py::test_an_address_is_a_side_of_a_dossier
    test_serve.py::test_each_of_a_crowd_is_answered_or_refused
    test_serve.py::test_no_request_makes_a_fault
    test_serve.py::test_the_client_of_openai_works_against_it
    test_slurm.py::test_an_array_gives_the_store_of_a_single_process
    test_streaming.py::test_a_model_larger_than_memory
    test_study.py::test_any_recipe_text_works_or_says_why_not
    test_study.py::test_ctrl_c_and_on
    test_study.py::test_killed_again_and_again
    test_study.py::test_two_processes_in_one_folder
    test_tokens.py::test_each_row_of_a_classifier_is_answered_as_alone
    test_wheel.py::test_it_finds_its_own_files_anywhere
    test_wheel.py::test_the_wheel_holds_every_file_of_the_package
    test_workers.py::test_a_cell_that_kills_its_workers_fails_alone
    test_workers.py::test_an_executor_gives_the_store_of_a_single_process
    test_workers.py::test_two_hundred_kills_leave_the_store_of_an_undisturbed_run
    test_workers.py::test_who_measures_a_time_is_alone
    """.split()


# the longest, which are begun first
LONGEST = """
    measure/04_memory runtimes/02_openvino runtimes/03_onnxruntime deploy/05_gguf quantize/21_int8 distill/10_distill
    """.split()


def rank(node: str) -> int:
    "The place of the test with this identifier in `LONGEST`; behind all of them if it is none of these."
    return next((place for place, name in enumerate(LONGEST) if name in node), len(LONGEST))


def heavy(node: str) -> bool:
    "Whether the test with this identifier is one of these."
    file, _, name = node.partition("::")
    function, _, case = name.partition("[")
    if function == "test_notebook_runs":
        return case.removesuffix(".ipynb]") in HEAVY_NOTEBOOKS
    file = file.rpartition("/")[2]
    return f"{file}::{name}" in HEAVY_TESTS or f"{file}::{function}" in HEAVY_TESTS
