"""Arguments about speculative decoding."""

from sala_sglang.plugin.argument_table.verdict import OFF, other, read, refused, tested

_SERVER = "serving/test_speculation.py"
_DRAFTS = "serving/test_draft_models.py"

VERDICTS = (
    refused(
        "speculative_algorithm",
        "unset, `NGRAM`, `EAGLE3`, `STANDALONE`",
        "the others draft trees or blocks, or read hidden states that this model does not give",
        _DRAFTS,
    ),
    tested(_SERVER, "speculative_num_draft_tokens", "2 to 16, 4 where none is given; others are refused"),
    refused("speculative_eagle_topk", (None, 1), "drafts are chains: a tree would need a recurrent state per branch"),
    refused(
        "speculative_ngram_max_bfs_breadth",
        "unset, 1",
        "drafts are chains: a tree would need a recurrent state per branch",
    ),
    refused("speculative_ngram_external_corpus_path", (None,), "drafts come from a request's own tokens"),
    refused(
        "speculative_draft_model_path",
        "a checkpoint that fits, with `EAGLE3` and `STANDALONE`; else unset",
        "it has to share the vocabulary and, with `EAGLE3`, to read this model's hidden states",
        _DRAFTS,
    ),
    refused(
        "speculative_draft_attention_backend",
        "unset; `fa3`, `flashinfer` and `triton` on GPUs, `torch_native` on CPUs",
        "SGLang has no steps of draft models for it",
    ),
    refused("speculative_adaptive", OFF, "it changes the number of rows of a verify step while a server runs"),
    refused(
        "speculative_accept_threshold_single speculative_accept_threshold_acc",
        (1.0,),
        "below 1 drafts are accepted that the model would not have chosen",
    ),
    refused(
        "speculative_use_rejection_sampling speculative_use_block_verification",
        OFF,
        "it was not tried with this model's verify step",
    ),
    refused("enable_multi_layer_eagle", OFF, "this model has no heads of several layers"),
    refused("speculative_draft_sink_size", (None,), "SGLang's EAGLE3 heads ignore it"),
    refused("decoupled_spec_role", ("null",), "drafts of another server are not served"),
    tested(_DRAFTS, "speculative_num_steps", "1 to 15; one less than the rows of a step, 3 where neither is given"),
    read("SGLang's loading of the draft model", "speculative_draft_model_revision speculative_draft_load_format"),
    read(
        "the draft model's weights, keys and values",
        "speculative_draft_model_quantization "
        "_speculative_draft_quantization_explicitly_set speculative_draft_kv_cache_dtype",
    ),
    read("tokens to which an EAGLE3 head attends", "speculative_draft_window_size"),
    read("experts of a draft model", "speculative_moe_runner_backend speculative_moe_a2a_backend"),
    read("where SGLang writes what was accepted", "spec_trace_dir"),
    other(
        "SGLang's corpus of n-grams",
        "speculative_ngram_min_bfs_breadth speculative_ngram_match_type speculative_ngram_max_trie_depth "
        "speculative_ngram_capacity speculative_ngram_external_sam_budget speculative_ngram_external_corpus_max_tokens",
    ),
    other(
        "other kinds of draft models",
        "uno_lora_path speculative_dflash_block_size "
        "speculative_dspark_block_size speculative_dspark_sps_table_path speculative_dspark_confidence_sts_path "
        "speculative_dspark_align_verify_tokens_to_graph_tier speculative_token_map speculative_attention_mode "
        "speculative_dsa_topk_backend speculative_enable_w4a4_mxfp4_megamoe speculative_adaptive_config "
        "speculative_domino_candidate_pool_size speculative_boundary_reduction "
        "decoupled_spec_bind_endpoint decoupled_spec_connect_endpoints decoupled_spec_rank",
    ),
)
