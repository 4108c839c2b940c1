"""Touches of the process that answers requests: ``http_requests.py`` and ``prefix_cache.py``."""

from sala_sglang.plugin.touches.touch import AROUND, FRONTEND, VARIABLE, Touch

TOUCHES = (
    Touch(
        target="SGLANG_HTTP_SERVER_APP_PATH",
        how=VARIABLE,
        process=FRONTEND,
        when="--tokenizer-worker-num",
        why="SGLang starts several processes for HTTP without its plugins; ours check requests there too",
        until="SGLang loads plugins there",
    ),
    Touch(
        target="SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND",
        how=VARIABLE,
        process=FRONTEND,
        when="another torch than SGLang requires",
        why="SGLang's tree in Rust is compiled against one torch; with another one servers have stopped answering",
        until="SGLang takes its tree in Python where it finds another torch",
        upstream="sgl-project/sglang#39627",
    ),
    Touch(
        target="fastapi.routing.solve_dependencies",
        how=AROUND,
        process=FRONTEND,
        why="validators of SGLang's protocol fail with an internal error on bodies of an unexpected shape",
        until="SGLang answers them with a refusal",
        upstream="sgl-project/sglang#36011",
    ),
    Touch(
        target="sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._convert_to_internal_request",
        how=AROUND,
        process=FRONTEND,
        why="what fails while a chat request is read counts as the client's error",
        until="SGLang answers it with status 400",
    ),
    Touch(
        target="sglang.srt.entrypoints.openai.serving_completions.OpenAIServingCompletion._convert_to_internal_request",
        how=AROUND,
        process=FRONTEND,
        why="what fails while a completion request is read counts as the client's error",
        until="SGLang answers whatever fails with status 400, as it does for a missing json_schema",
        upstream="sgl-project/sglang#28090",
    ),
    Touch(
        target="sglang.srt.managers.io_struct.GenerateReqInput.normalize_batch_and_arguments",
        how=AROUND,
        process=FRONTEND,
        why="empty lists and numbers of samples without a bound are refused, and what fails is the client's error",
        until="SGLang refuses them",
        upstream="sgl-project/sglang#36856",
    ),
    Touch(
        target="sglang.srt.sampling.sampling_params.get_max_seq_length",
        how=AROUND,
        process=FRONTEND,
        why="a stop_regex that cannot be parsed is refused",
        until="SGLang refuses it",
    ),
    Touch(
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager._init_req_state",
        how=AROUND,
        process=FRONTEND,
        why="lists shorter than the batch are refused with their names",
        until="SGLang refuses them",
    ),
    Touch(
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager._create_tokenized_object",
        how=AROUND,
        process=FRONTEND,
        why="what the scheduler cannot decode, or its tensors cannot take, would end the server: it is refused before",
        until="SGLang's scheduler survives every message",
        upstream="sgl-project/sglang#36856",
    ),
)
