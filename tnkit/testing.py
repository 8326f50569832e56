"""Tiny random models of every architecture, and a tokenizer of single bytes, so that tests need no download."""

from functools import cache
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

if TYPE_CHECKING:
    import numpy as np

    from tnkit.captures.activations import Activations
    from tnkit.measures.steering.steering import Steering
    from tnkit.models.model import Model
    from tnkit.replication.findings import Findings
    from tnkit.replication.study import Study
    from tnkit.text.corpus import Corpus

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_NO_HEAD_DIM = {k: v for k, v in _LLAMA.items() if k != "head_dim"}
_NEOX = {k: v for k, v in _NO_HEAD_DIM.items() if k != "num_key_value_heads"}
_GEMMA = _LLAMA | {"sliding_window": 64, "query_pre_attn_scalar": 8}
_OPT = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "dropout": 0.0,
}
_GPT2 = {"n_embd": 32, "n_inner": 48, "n_layer": 4, "n_head": 4, "n_positions": 128}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_hidden_size": 48}

# architecture: (model type, configuration)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "llama-bias": ("llama", _LLAMA | {"mlp_bias": True}),
    "mistral": ("mistral", _LLAMA | {"sliding_window": 64}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _LLAMA),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", _GEMMA),
    "cohere": ("cohere", _LLAMA),
    "cohere2": ("cohere2", _LLAMA | {"sliding_window": 64}),
    "gpt2": ("gpt2", _GPT2),
    "gpt-neox": ("gpt_neox", _NEOX),
    "gpt-neox-sequential": ("gpt_neox", _NEOX | {"use_parallel_residual": False}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "opt": ("opt", _OPT),
    "xglm": (
        "xglm",
        {
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 4,
            "attention_heads": 4,
            "max_position_embeddings": 512,
            "dropout": 0.0,
        },
    ),
    "falcon": ("falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-7b": ("falcon", _FALCON | {"parallel_attn": True, "multi_query": True}),
    "falcon-rw": ("falcon", _FALCON | {"parallel_attn": False, "alibi": True, "multi_query": False, "bias": True}),
    "phi": ("phi", _NEOX | {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", _NO_HEAD_DIM),
    "olmo2": ("olmo2", _NO_HEAD_DIM),
    "stablelm": ("stablelm", _NO_HEAD_DIM),
    "stablelm-parallel": ("stablelm", _NO_HEAD_DIM | {"use_parallel_residual": True}),
    "granite": ("granite", _NO_HEAD_DIM | {"residual_multiplier": 0.22}),
}
_MOE = _LLAMA | {"moe_intermediate_size": 24, "num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2}
_ROUTED = {k: v for k, v in _MOE.items() if k not in ("num_experts", "num_local_experts")} | {
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
_GRANITE = _MOE | {"residual_multiplier": 0.5, "shared_intermediate_size": 16}
_NEXT = _MOE | {
    "shared_expert_intermediate_size": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_d_head": 16, "layer_types": ["attention", "mamba"] * 2}

# mixture of experts: (model type, configuration)
EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", _MOE),
    "qwen2-moe": ("qwen2_moe", _MOE | {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 1}),
    "qwen3-moe": ("qwen3_moe", _MOE),
    "qwen3-next": ("qwen3_next", _NEXT),
    "qwen3.5-moe": ("qwen3_5_moe_text", _NEXT),
    "gpt-oss": ("gpt_oss", _MOE | {"sliding_window": 64}),
    "olmoe": ("olmoe", _MOE),
    "flex-olmo": ("flex_olmo", _MOE),
    "deepseek-v2": ("deepseek_v2", _ROUTED | _LATENT | {"q_lora_rank": None}),
    "deepseek-v3": ("deepseek_v3", _ROUTED | _LATENT | {"q_lora_rank": 16}),
    "glm4-moe": ("glm4_moe", _ROUTED),
    "ernie4.5-moe": ("ernie4_5_moe", _LLAMA | {"moe_intermediate_size": 24, "moe_num_experts": 6, "moe_k": 2}),
    "granite-moe": ("granitemoe", _GRANITE),
    "granite-moe-shared": ("granitemoeshared", _GRANITE),
    "granite-moe-hybrid": ("granitemoehybrid", _GRANITE | _MAMBA),
    "hunyuan-moe": ("hunyuan_v1_moe", _MOE | {"moe_topk": 2}),
    "phimoe": ("phimoe", _MOE),
    "exaone-moe": ("exaone_moe", _MOE | {"num_shared_experts": 1, "first_k_dense_replace": 1, "sliding_window": 64}),
    "dots1": ("dots1", _ROUTED),
    "minimax": ("minimax", _MOE | {"block_size": 16}),
    "minimax-m2": ("minimax_m2", _MOE),
    "lfm2-moe": ("lfm2_moe", _MOE | {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"] * 2}),
    "llama4": ("llama4_text", _MOE | {"intermediate_size_mlp": 48, "interleave_moe_layer_step": 2}),
    "mellum": ("mellum", _MOE),
    "solar-open": ("solar_open", _ROUTED),
    "jamba": ("jamba", _MOE | {"use_mamba_kernels": False, "mamba_dt_rank": 4}),
}
_TOKENS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,  # as many as the text model has
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "num_channels": 3,
}

# image-text wrapper: (model type, text configuration, options of its own)
IMAGE_TEXT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3-image-text": (
        "gemma3",
        _GEMMA,
        {"mm_tokens_per_image": 4, "boi_token_index": 258, "eoi_token_index": 258, "vision_config": _VISION},
    ),
    "llava": (
        "llava",
        _LLAMA | {"model_type": "llama"},
        {"vision_config": _VISION | {"model_type": "clip_vision_model", "projection_dim": 32}},
    ),
    "mistral3": (
        "mistral3",
        _LLAMA | {"model_type": "mistral"},
        {"vision_config": _VISION | {"model_type": "pixtral"}},
    ),
    "paligemma": (  # attends to its prompt in both directions
        "paligemma",
        _LLAMA | {"model_type": "gemma"},
        {"projection_dim": 32, "vision_config": _VISION | {"model_type": "siglip_vision_model", "projection_dim": 32}},
    ),
}


def tiny_config(name: str) -> Any:
    """The configuration of a tiny model of that architecture, or of that image-text wrapper."""
    if name in IMAGE_TEXT:
        model_type, text, options = IMAGE_TEXT[name]
        text = {"vocab_size": 260, **_TOKENS, **text}
        return AutoConfig.for_model(model_type, text_config=text, image_token_index=259, **options)
    model_type, options = (ARCHITECTURES | EXPERTS)[name]
    return AutoConfig.for_model(model_type, vocab_size=260, **_TOKENS, **options)


@cache
def tiny_module(name: str) -> transformers.PreTrainedModel:
    """A tiny random model whose every parameter is drawn anew, so that no bias is zero and no gain is one."""
    auto = AutoModelForImageTextToText if name in IMAGE_TEXT else AutoModelForCausalLM
    return redrawn(auto.from_config(tiny_config(name)))


def redrawn(module: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The module with every parameter drawn anew."""
    generator = torch.Generator().manual_seed(0)
    module.eval()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.15 * noise if parameter.ndim > 1 else parameter + 0.3 * noise)
    return module


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of UTF-8 bytes with BOS, EOS and PAD, which every script passes through."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 256)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


@cache
def tiny_model(name: str = "llama") -> "Model":
    """A loaded `tnkit.Model` around the tiny random model.

    >>> tiny_model().n_layers, tiny_model().n_neurons
    (4, 48)
    """
    import tnkit as tn

    return tn.load_model(tiny_module(name), tokenizer=byte_tokenizer())


SENTENCES = [
    "One can always find time.",
    "Hi!",
    "時間はいくらでも作れる。",
    "Non hai mai il tempo per le cose importanti!",
    "I can't speak Japanese.",
    "오늘은 날씨가 좋네요.",
]


@cache
def captured() -> "Activations":
    """The last tokens of the six sentences, captured of the tiny model."""
    import tnkit as tn

    return tn.capture(tiny_model(), SENTENCES, progress=False)


@cache
def by_language() -> dict[str, "Activations"]:
    """Three of the sentences as English and three as Japanese, captured of the tiny model."""
    import tnkit as tn

    halves = {"en": SENTENCES[:3], "ja": SENTENCES[3:]}
    return {name: tn.capture(tiny_model(), texts, progress=False) for name, texts in halves.items()}


@cache
def tiny_corpus() -> "Corpus":
    """A corpus of 15 short training and 15 test sentences each in English, Italian and Japanese."""
    import tnkit as tn

    things = {"en": "cat dog tree house boat", "it": "gatto cane albero casa barca", "ja": "猫 犬 木 家 舟"}
    said = {"en": "I see a {} ({}).", "it": "Vedo un {} ({}).", "ja": "{}が見える（{}）。"}
    rows = {name: [said[name].format(words.split()[n % 5], n) for n in range(30)] for name, words in things.items()}
    return tn.load_corpus(pd.DataFrame({**rows, "split": ["train", "test"] * 15}))


@cache
def steered() -> "Steering":
    """A tiny model's continuations of three sentences, steered towards Italian at two strengths."""
    import tnkit as tn

    train, prompts = tiny_corpus()["train"], tiny_corpus()["test"]["en"][:3]
    italian = tn.detect(tiny_model(), tiny_corpus(), language="it", kind="type2", top=9, progress=False).neurons
    how: dict[str, Any] = {"candidates": ["en", "it"], "encode": letters, "max_new_tokens": 4, "progress": False}
    names = ["uniform", "DiffMean"]
    return tn.steer(tiny_model(), prompts, {"it": italian}, train, strengths=[1, 2], selections=names, **how)


@cache
def tiny_study(name: str = "llama") -> "Study":
    """The study of a tiny model in Italian and Japanese, at the smallest sizes."""
    from tnkit.replication.study import QUICK, Study, cut

    corpus = cut(tiny_corpus(), ["en", "it", "ja"], QUICK.sentences)
    return Study(tiny_model(name), corpus, ("it", "ja"), "en", QUICK, cache=False, progress=False)


def studied(run: Any, name: str = "llama") -> "Findings":
    """What a section of the study finds on that tiny model; its figures are closed."""
    import matplotlib.pyplot as plt

    found = run(tiny_study(name))
    for figure in found.figures.values():
        plt.close(figure)
    return found


def letters(texts: Any) -> "np.ndarray":
    """How often each letter of the alphabet is in each text, (text, 26), in place of an encoder."""
    import numpy as np

    return np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


def held(post: Any, layers: tuple[int, ...] | None = None, **more: Any) -> "Activations":
    """A capture that holds these states as `post`."""
    import tnkit as tn

    post = torch.as_tensor(post).float()
    return tn.Activations(
        tuple(range(len(post))) if layers is None else layers, torch.arange(post.shape[1]), post=post, **more
    )


def cloud(*shape: int, seed: int = 0, offset: float = 3.0) -> torch.Tensor:
    """Random states around a mean that is not zero, as hidden states are."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset
