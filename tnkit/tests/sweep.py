"""Every causal language model of the installed transformers, tiny and random: read correctly, or refused in a sentence.

    python -m tnkit.tests.sweep              # a line for each architecture, then the counts; about ten minutes
    python -m tnkit.tests.sweep lfm2 bamba   # of these only

An accepted model is checked against plain PyTorch: without tnkit's reading, one neuron is set to zero by a hook on the
MLP's last linear map, and the layer's output must change as value vector and activation say.
"""

import sys
import traceback
import warnings
from collections import Counter
from operator import attrgetter

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import tnkit as tn
from tnkit.testing import SENTENCES, byte_tokenizer, redrawn

_LARGEST = 20_000_000
# Whatever of these a configuration has is set, so that the model is tiny.
_SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "dim", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"mamba_d_head": 8, "mamba_head_dim": 8, "mamba_d_state": 8, "ssm_state_size": 8, "head_dim": 8, "rotary_dim": 4},
    **{"attention_types": [[["global", "local"], 2]], "attn_layer_indices": [1, 3]},
    **{"lru_width": 32, "vocab_size_per_layer_input": 260, "hidden_size_per_layer_input": 8, "laurel_rank": 4},
    **{
        "num_kv_shared_layers": 0,
        "query_pre_attn_scalar": 8,
        "sliding_window": 64,
        "state_size": 8,
        "time_step_rank": 4,
    },
    **{"vocab_size": 260, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258},
}


# Configurations that reject a size, or need one that they leave open, are asked again.
_VARIANTS: tuple[dict, ...] = (
    {},
    {"head_dim": 8, "num_key_value_heads": 2},
    {"head_dim": None, "v_head_dim": None, "max_position_embeddings": None},
    {"pad_token_id": 1},
    {"head_dim": None, "pad_token_id": 1},
)


def tiny_version(model_type):
    """A tiny random model of that type."""
    failed = None
    for variant in _VARIANTS:
        try:
            config = _config(AutoConfig.for_model(model_type).get_text_config(decoder=True), variant)
            with torch.device("meta"):
                size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
            if size > _LARGEST:
                raise ValueError(f"{size / 1e6:.0f} million parameters, more than a test should have")
            return redrawn(AutoModelForCausalLM.from_config(config))
        except Exception as error:
            failed = failed or error
    raise failed


def _config(text, variant):
    """A small configuration of the same class; a variant's None leaves the size as it is."""
    wanted = {name: size for name, size in _SIZES.items() if getattr(text, name, None) is not None}
    wanted |= {name: _SIZES[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")} | variant
    if kinds := vars(text).get("layer_types"):
        wanted["layer_types"] = (list(dict.fromkeys(kinds)) * 4)[:4]
    return type(text)(**{name: size for name, size in wanted.items() if size is not None})


def outcome(module):
    """What becomes of a module: "right", "wrong" or "refused", and the reason."""
    try:
        model = tn.load_model(module, tokenizer=byte_tokenizer())
    except tn.TnkitError as error:
        return "refused", str(error)
    captured = tn.capture(model, SENTENCES, progress=False)
    worst = max(
        _error(model, module, captured, number, layer)
        for number, layer in ((0, 0), (3, model.n_layers - 1), (5, model.n_layers // 2))
    )
    return ("right" if worst < 1e-3 else "wrong"), f"{worst:.1g} with {model.reading}"


def _error(model, module, captured, number, layer):
    """How far the change of a layer's last state is from the prediction, and the capture from plain hooks."""
    ids = torch.tensor([byte_tokenizer()(SENTENCES[number])["input_ids"]])
    block = attrgetter(model.blocks_path)(module)[layer]
    sites = model.sites[layer]
    last_map = attrgetter(sites.last_map)(block)
    neuron = int(captured.activations[layer, number].abs().argmax())
    plain, inputs = _post(module, block, last_map, ids)
    without, _ = _post(module, block, last_map, ids, neuron)
    activations = inputs.clone()
    activations[neuron] = 0
    vectors, bias = model.value_vectors(layer).double(), model.output_bias(layer).double()
    branches = [(read.double() @ vectors + bias).float() for read in (inputs, activations)]
    if sites.norm:
        with torch.inference_mode():
            branches = [attrgetter(sites.norm)(block)(branch) for branch in branches]
    predicted = sites.multiplier * (branches[1] - branches[0])
    kept = captured.post[layer, number]
    return max(
        float((without - plain - predicted).norm() / predicted.norm()), float((kept - plain).norm() / plain.norm())
    )


def _post(module, block, last_map, ids, neuron=None):
    """A block's output and the input of its last map at the last token, of a sentence alone, read by hooks."""
    found = {}

    def switch_off(_, args):
        values = args[0].clone()
        found["inputs"] = values.reshape(ids.shape[1], -1)[-1].clone()
        if neuron is not None:
            values[..., neuron] = 0
        return (values, *args[1:])

    def read(_, __, output):
        output = output[0] if isinstance(output, tuple) else output
        found["post"] = output.reshape(ids.shape[1], -1)[-1]

    handles = [last_map.register_forward_pre_hook(switch_off), block.register_forward_hook(read)]
    try:
        with torch.inference_mode():
            module(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found["post"], found["inputs"]


def main(names):
    """Print a line for each architecture, and the counts; the exit code is 1 where one crashes or is wrong."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(50)
    counts = Counter()
    for model_type in names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            torch.manual_seed(0)
            module = tiny_version(model_type)
        except Exception as error:
            kind, reason = "not built", f"{type(error).__name__}: {error}"
        else:
            try:
                kind, reason = outcome(module)
            except Exception:
                kind, reason = "crashed", traceback.format_exc(limit=-2)
        counts[kind] += 1
        print(f"{kind:9} {model_type}: {' '.join(reason.split())[:300]}", flush=True)
    print(dict(counts))
    return int(counts["crashed"] + counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
