"""What a user would write instead, on the same model and sentences: hooks, nnsight, TransformerLens, LAPE's counting.

Each reads what detection needs of a sentence: the state before and after the MLP, and its neurons, at the last token.
"""

import copy
import importlib.util
from functools import partial

import nnsight
import torch

import tnkit as tn

BATCH = 32  # sentences, in the order of the text, as tutorials batch them


@torch.inference_mode()
def hooked(model, texts):
    """`output_hidden_states` and hooks on the down projections, in padded batches."""
    kept = []
    for batch in batches(texts):
        inputs = padded(model, batch)
        last, rows = inputs["attention_mask"].sum(dim=1) - 1, torch.arange(len(batch))
        neurons, mids, handles = [], [], []
        for block in model.module.model.layers:

            def keep(_, args, kept, rows=rows, last=last):
                kept.append(args[0][rows, last])

            for module, kept_of in ((block.mlp.down_proj, neurons), (block.pre_feedforward_layernorm, mids)):
                handles.append(module.register_forward_pre_hook(partial(keep, kept=kept_of)))
        hidden = model.module.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        for handle in handles:
            handle.remove()
        kept.append([torch.stack(part) for part in ([state[rows, last] for state in hidden], mids, neurons)])
    return [torch.cat(part, dim=1) for part in zip(*kept, strict=True)]


@torch.inference_mode()
def by_nnsight(model, texts):
    """nnsight as its tutorial has it: traces of lists of texts, padded on the left, and values saved by layer."""
    lm, kept = nnsight.modeling.transformers.TransformersModel(model.module, tokenizer=model.tokenizer), []
    for batch in batches(texts):
        with lm.trace(batch):
            neurons, mids, posts = nnsight.save([]), nnsight.save([]), nnsight.save([])
            for block in lm.model.layers:
                mids.append(block.pre_feedforward_layernorm.input[:, -1])
                neurons.append(block.mlp.down_proj.input[:, -1])
                output = block.output
                posts.append((output[0] if isinstance(output, tuple) else output)[:, -1])
        kept.append([torch.stack(part) for part in (posts, mids, neurons)])
    model.tokenizer.padding_side = "right"
    return [torch.cat(part, dim=1) for part in zip(*kept, strict=True)]


def bridged(model):
    """A copy of the model in TransformerLens; None where that is not installed (pip install transformer_lens)."""
    if not importlib.util.find_spec("transformer_lens"):
        return None
    from transformer_lens.model_bridge import TransformerBridge

    module = copy.deepcopy(model.module)
    return TransformerBridge.boot_transformers(
        module.config._name_or_path, hf_model=module, tokenizer=copy.deepcopy(model.tokenizer)
    )


@torch.inference_mode()
def by_transformer_lens(bridge, model, texts):
    """`run_with_cache` of TransformerLens, which keeps the named states of every token, in padded batches."""
    kept = []
    sites = ("hook_resid_post", "hook_resid_mid", "mlp.hook_post")
    names = [[f"blocks.{layer}.{site}" for layer in range(model.n_layers)] for site in sites]
    for batch in batches(texts):
        inputs = padded(model, batch)
        last, rows = inputs["attention_mask"].sum(dim=1) - 1, torch.arange(len(batch))
        mask, wanted = inputs["attention_mask"], [name for part in names for name in part]
        _, cache = bridge.run_with_cache(inputs["input_ids"], attention_mask=mask, names_filter=wanted)
        kept.append([torch.stack([cache[name][rows, last] for name in part]) for part in names])
    return [torch.cat(part, dim=1) for part in zip(*kept, strict=True)]


@torch.inference_mode()
def lape(model, texts):
    """How often each neuron's gate is positive over all tokens, counted by hooks, as the code of LAPE does."""
    counts = torch.zeros(model.n_layers, model.n_neurons)
    for batch in batches(texts):
        inputs, handles = padded(model, batch), []
        real = inputs["attention_mask"].bool()
        for layer, block in enumerate(model.module.model.layers):

            def count(_, __, gates, layer=layer, real=real):
                counts[layer] += (gates[real] > 0).sum(dim=0)

            handles.append(block.mlp.act_fn.register_forward_hook(count))
        model.module.model(**inputs, use_cache=False)
        for handle in handles:
            handle.remove()
    return counts


def captured(model, texts):
    """The same by tnkit: states and neurons, kept."""
    return tn.capture(model, texts, progress=False)


def batches(texts):
    """Lists of sentences."""
    return [list(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]


def padded(model, batch):
    """Token ids and mask, padded on the right."""
    return model.tokenizer(batch, return_tensors="pt", padding=True, padding_side="right")
