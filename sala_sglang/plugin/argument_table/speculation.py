"""Arguments about speculative decoding."""

from sala_sglang.plugin.argument_table.verdict import OFF, other, read, refused, tested

_SERVER = "serving/test_speculation.py"

VERDICTS = (
    refused("speculative_algorithm", "unset, `NGRAM`", "drafts of a model are not served yet", _SERVER),
    tested(_SERVER, "speculative_num_draft_tokens", "2 to 16, 4 where none is given; others are refused"),
    refused("speculative_eagle_topk", (None, 1), "drafts are chains: a tree would need a recurrent state per branch"),
    refused(
        "speculative_ngram_max_bfs_breadth",
        "unset, 1",
        "drafts are chains: a tree would need a recurrent state per branch",
    ),
    refused("speculative_ngram_external_corpus_path", (None,), "drafts come from a request's own tokens"),
    refused("speculative_draft_model_path", (None,), "drafts of a model are not served yet"),
    refused("speculative_adaptive", OFF, "it is for drafts of a model; steps choose their rows by what was accepted"),
    refused(
        "speculative_accept_threshold_single speculative_accept_threshold_acc",
        (1.0,),
        "below 1 drafts are accepted that the model would not have chosen",
    ),
    refused(
        "speculative_use_rejection_sampling speculative_use_block_verification",
        OFF,
        "it is for drafts of a model",
    ),
    refused("enable_multi_layer_eagle", OFF, "drafts of a model are not served yet"),
    refused("decoupled_spec_role", ("null",), "drafts of another server are not served"),
    read("KV that is set aside per step, if it is more than the rows of one", "speculative_num_steps"),
    read("where SGLang writes what was accepted", "spec_trace_dir"),
    other(
        "SGLang's corpus of n-grams",
        "speculative_ngram_min_bfs_breadth speculative_ngram_match_type speculative_ngram_max_trie_depth "
        "speculative_ngram_capacity speculative_ngram_external_sam_budget speculative_ngram_external_corpus_max_tokens",
    ),
    other(
        "drafts of a model",
        "uno_lora_path speculative_draft_model_revision speculative_draft_load_format speculative_dflash_block_size "
        "speculative_dspark_block_size speculative_dspark_sps_table_path speculative_dspark_confidence_sts_path "
        "speculative_dspark_align_verify_tokens_to_graph_tier speculative_token_map speculative_attention_mode "
        "speculative_draft_attention_backend speculative_dsa_topk_backend speculative_draft_kv_cache_dtype "
        "speculative_draft_window_size speculative_moe_runner_backend speculative_moe_a2a_backend "
        "speculative_enable_w4a4_mxfp4_megamoe speculative_draft_model_quantization "
        "_speculative_draft_quantization_explicitly_set speculative_adaptive_config "
        "speculative_domino_candidate_pool_size speculative_boundary_reduction speculative_draft_sink_size "
        "decoupled_spec_bind_endpoint decoupled_spec_connect_endpoints decoupled_spec_rank",
    ),
)
