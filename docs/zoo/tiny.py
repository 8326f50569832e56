"""A tiny random model of any type that transformers knows, made from its configuration class alone: `tiny`.

Whatever of `SIZES` a configuration has is set, in the configurations inside it too. What a type needs beyond that is
in `OWN`.
"""

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from tnkit.testing import redrawn

LAYERS, VOCABULARY, LARGEST = 4, 300, 40_000_000
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "dim", "embedding_size"), 32),
    **dict.fromkeys(("embed_dim", "projection_dim", "out_hidden_size", "lru_width", "dim_model"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "mlp_dim", "dim_ff", "ffn_hidden_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "depth", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"mamba_d_head": 8, "mamba_head_dim": 8, "mamba_d_state": 8, "ssm_state_size": 8, "head_dim": 8, "rotary_dim": 4},
    **{"attention_types": [[["global", "local"], 2]], "attn_layer_indices": [1, 3], "first_k_dense_replace": 1},
    **{"hidden_size_per_layer_input": 8, "laurel_rank": 4, "num_kv_shared_layers": 0, "query_pre_attn_scalar": 8},
    **{"vocab_size_per_layer_input": VOCABULARY, "sliding_window": 64, "state_size": 8, "time_step_rank": 4},
    **{"image_size": 28, "patch_size": 14, "num_nextn_predict_layers": 0, "n_shared_experts": 1},
    **{"base_channels": 32, "latent_channels": 8, "num_res_blocks": 1, "codebook_size": 64, "num_embeddings": 64},
    **{"index_n_heads": 4, "index_head_dim": 8, "index_topk": 128, "num_layers_per_stage": 1},
    **{"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258},
}
_ALWAYS = ("bos_token_id", "eos_token_id", "pad_token_id")
_IMAGES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index", "audio_token_id")
_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type")
# A configuration that rejects a size, or needs one that it leaves open, is asked again.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"head_dim": 8, "num_key_value_heads": 2},
    {"head_dim": None, "v_head_dim": None, "max_position_embeddings": None},
    {"pad_token_id": 1},
    {"head_dim": None, "pad_token_id": 1},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 4, "head_dim": None},
)
# What single types need beyond the sizes above.
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_SECTIONED = ("glm4v", "glm46v", "glm_ocr", "glmga", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker")
_HALF = _SECTIONS | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
_COMPASS = {"full_attention": _SECTIONS, "sliding_attention": _SECTIONS}
_GEMMA4: dict[str, Any] = {"head_dim": 8, "global_head_dim": 16}
_INDEXER = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_compress_ratio": 4}
_QWEN4 = _INDEXER | {"head_dim": 8, "indexer_budget": 64, "ngram_vocab_size_base": 300, "split_ngram_parts": 8}
OWN: dict[str, dict[str, Any]] = {
    **{name: {"text_config.rope_parameters": _SECTIONS} for name in _SECTIONED},
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), _GEMMA4),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _QWEN4),
    "glm4v_moe": {"text_config.rope_parameters": _HALF},
    "cohere_compass": {"text_config.rope_parameters": _COMPASS},
    "cohere_compass_text": {"rope_parameters": _COMPASS},
    "gemma4_text+scalar": _GEMMA4 | {"hidden_size_per_layer_input": 0},
    "granitemoehybrid+dense": {"num_local_experts": 0, "shared_intermediate_size": 48, "residual_multiplier": 0.5},
    "jamba+dense": {"num_experts": 1},
    "nemotron_h+dense": {"layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]},
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "chameleon": {"vocabulary_map": {"<image>": VOCABULARY - 1}},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48},
    },
    "deepseek_ocr2": {"text_config.mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_experts_per_tok": 2},
    "dots1": {"num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "emu3": {"vocabulary_map": {"<image>": VOCABULARY - 1, "<|extra_200|>": VOCABULARY - 2}},
    "falcon_h1": {"mamba_d_ssm": 64},
    "florence2": {"patch_size": None},
    "hunyuan_vl": {
        "text_config.head_dim": 8,
        "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "xdrope_section": [1, 1, 1, 1]},
    },
    "kosmos-2": {"text_config.max_position_embeddings": 512},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "muse_spark": {"text_config.moe_hidden_size": 32, "audio_config.hidden_sizes": [32] * 4},
    "nemotron_h_omni": {"vision_config.video_temporal_patch_size": 2},
    "gemma3n_text": {"intermediate_size": [48] * LAYERS},
    "gemma3n": {"text_config.intermediate_size": [48] * LAYERS},
    "gemma4_assistant": {"text_config.hidden_size_per_layer_input": 0},
    "granite4_vision": {"deepstack_layer_map": [], "vision_config.hidden_size": 64},
    "molmo2": {"adapter_config.vision_feature_layer": [-1]},
    "reformer": {"axial_pos_embds_dim": [8, 24], "axial_pos_shape": [8, 16]},
    "xmod": {"pad_token_id": 1, "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "deepseek_v2": {"head_dim": None, "num_key_value_heads": 4, "num_experts_per_tok": 2},
    "glm5_next": {"num_key_value_heads": 4, "text_config.qk_rope_head_dim": 0},
    "step3p7": {"text_config.sliding_window": 64},
    "qwen3_omni_moe_thinker": {".vision_start_token_id": 290, ".vision_end_token_id": 291},
    "prophetnet": {"num_hidden_layers": None},
}
VERSIONS = tuple(name for name in OWN if "+" in name)  # of a type, such as Granite 4 without experts


def tiny(model_type: str, auto: Any) -> PreTrainedModel:
    """A tiny random model of that type, every parameter drawn anew, which reads a few tokens.

    Args:
        model_type: as the configuration names it.
        auto: the class of transformers that makes it, such as `AutoModelForCausalLM`.

    Raises:
        Exception: what the first try raised, where none gives a model that reads tokens.
    """
    failed: Exception | None = None
    for variant in VARIANTS:
        try:
            torch.manual_seed(0)
            config = shrunk(AutoConfig.for_model(model_type.partition("+")[0]), variant | OWN.get(model_type, {}))
            with torch.device("meta"):
                size = sum(weight.numel() for weight in auto.from_config(config).parameters())
            if size > LARGEST:
                raise ValueError(f"{size / 1e6:.0f} million parameters, more than a tiny model should have")
            module = redrawn(auto.from_config(config).float())
            for name, scalar in module.named_buffers():
                if name.endswith("layer_scalar"):  # Gemma 4's, which is 1 until it is trained
                    scalar.mul_(0.7)
            with torch.inference_mode():
                read = module(input_ids=torch.arange(60, 68)[None], use_cache=False)
            if not bool(read[0].isfinite().all()):
                raise ValueError("its outputs are not finite")
            return module
        except Exception as error:
            failed = failed or error
    assert failed is not None
    raise failed


def shrunk(config: PreTrainedConfig, options: dict[str, Any]) -> PreTrainedConfig:
    """A small configuration of the same class.

    Args:
        config: the configuration of the type's own sizes.
        options: what is set beside `SIZES`: ".NAME" in this configuration, "text_config.NAME" in one inside it, NAME in
            that of the text; None leaves a default.
    """
    wanted = {name: _like(default, SIZES[name]) for name in SIZES if (default := _get(config, name)) is not None}
    for name in _LISTS:
        derived = isinstance(getattr(type(config), config.attribute_map.get(name, name), None), property)
        if isinstance(kinds := _get(config, name), list) and not derived:
            wanted[name] = (list(dict.fromkeys(kinds)) * LAYERS)[:LAYERS]
    wanted |= {name: VOCABULARY - 1 for name in _IMAGES if isinstance(_get(config, name), int)}
    if "is_decoder" in type(config).__annotations__:
        wanted["is_decoder"] = True
    if not (inner := [name for name in config.sub_configs if isinstance(_get(config, name), PreTrainedConfig)]):
        wanted |= {name: SIZES[name] for name in _ALWAYS}
    own = {name: value for name, value in options.items() if "." not in name}
    root = {name[1:]: value for name, value in options.items() if name.startswith(".")}
    for name in inner:
        given = {path.removeprefix(f"{name}."): value for path, value in options.items() if path.startswith(f"{name}.")}
        text = getattr(config, name) is config.get_text_config(decoder=True)
        wanted[name] = shrunk(getattr(config, name), (own if text else {}) | given)
    given_here = own if not inner else {name: value for name, value in own.items() if hasattr(type(config), name)}
    asked = {config.attribute_map.get(name, name): size for name, size in (*wanted.items(), *given_here.items())} | root
    return type(config)(**{name: size for name, size in asked.items() if size is not None})


def _get(config: PreTrainedConfig, name: str) -> Any:
    """An attribute, or None where there is none or where it differs by layer."""
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def _like(default: Any, size: Any) -> Any:
    """A size in the form of the default: one number, or a list of as many."""
    many = isinstance(default, list | tuple) and isinstance(size, int) and all(isinstance(one, int) for one in default)
    return [size] * len(default) if many else size
