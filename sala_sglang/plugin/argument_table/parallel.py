"""Arguments about ranks, nodes and what they say to each other."""

from sala_sglang.plugin.argument_table.verdict import OFF, other, read, refused, tested

_ONE_PLAN, _WHOLE_REQUEST = (
    "ranks without a request would miss the MLP's collectives, and weights fit one GPU: --dp-size has replicas",
    "a rank selects among all tokens of a request",
)
_NO_EXPERTS = "there are no experts"

VERDICTS = (
    refused(
        "tp_size",
        "sizes that divide the heads: 1, 2, 4, 8 tested, 16, 32",
        "heads are divided over ranks",
        "serving/test_equality.py",
    ),
    refused("pp_size", "1 to the number of layers", "a stage has at least one layer", "serving/test_pipeline.py"),
    refused("attn_dp_size", (1,), _ONE_PLAN),
    refused("enable_dp_attention", OFF, _ONE_PLAN),
    refused("attn_cp_size", (1,), _WHOLE_REQUEST),
    refused("dcp_size", (1,), _WHOLE_REQUEST),
    refused("enable_prefill_cp enable_cp_decode_attn_tp enable_cp_tp_group_sharing", OFF, _WHOLE_REQUEST),
    refused("enable_kv_cache_sharding", OFF, "a rank reads all pages of a request"),
    refused("enable_dsa_cache_layer_split", OFF, "there is no DSA"),
    refused("ep_size moe_dp_size dwdp_size", (1,), _NO_EXPERTS),
    refused("enable_layernorm_sp", OFF, "norms are fused with the residual stream of whole rows"),
    refused("enable_attn_tp_input_scattered", OFF, "it is a part of SGLang's layer communicator, which is not used"),
    refused("enable_dp_lm_head enable_dense_mlp_attn_tp", OFF, "attention is not data parallel"),
    refused("use_ray", OFF, "SGLang's Ray actors load no plugins, and would serve SGLang's own model"),
    refused("enable_quant_communications", OFF, "SGLang has it for NPUs"),
    tested("serving/test_replicas.py", "dp_size", "replicas, each with a prefix cache of its own"),
    read("which replica SGLang's controller gives a request", "load_balance_method"),
    tested("serving/test_nodes.py", "nnodes node_rank dist_init_addr nccl_port", "two nodes of one host"),
    read("how ranks over nodes find and wait for each other", "dist_timeout gated_launch_port"),
    read(
        "how SGLang fills pipeline stages; their answers depend on neither",
        "pp_max_micro_batch_size pp_async_batch_depth",
    ),
    read("where ranks run", "base_gpu_id gpu_id_step numa_node enable_p2p_check"),
    read(
        "how SGLang's group reduces; the model calls nothing but that group",
        "enable_nccl_nvls enable_symm_mem disable_custom_all_reduce enable_mscclpp enable_torch_symm_mem pre_warm_nccl",
    ),
    other(
        "data-parallel attention",
        "enable_dp_attention_local_control_broadcast enable_tp_lm_head_all_to_all disable_attn_tp_gather",
    ),
    other("context parallelism", "dcp_comm_backend dcp_replicate_q_proj cp_strategy"),
    other(
        "experts",
        "enable_shared_experts_attn_tp shared_experts_tp_size moe_dense_tp_size ep_join_rank_offset "
        "elastic_ep_initial_size max_ep_size enable_megamoe_for_layernorm_sp",
    ),
    other(
        "SGLang's layer communicator: branches are scaled before they are added",
        "boundary_reduction enable_flashinfer_allreduce_fusion enforce_disable_flashinfer_allreduce_fusion "
        "flashinfer_allreduce_fusion_backend enable_aiter_allreduce_fusion disable_aiter_allreduce_fusion_in_prefill "
        "disable_aiter_allreduce_fusion_in_decode",
    ),
    other("a short convolution", "enable_scattered_sconv"),
)
