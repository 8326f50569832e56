"""Detection as one would write it down from the definition: a sentence at a time, every m + c as a vector."""

import torch


def detect(module, tokenizer, language, hub, boundary, top, *, head):
    """Type-1 and Type-2 neurons of a Llama, Mistral or Gemma: the pairs of each, by cosine, at the last token.

    With `head`, the model is called whole, as the published code does, output head included.
    """
    blocks = module.model.layers
    own = centroid(module, tokenizer, language, head)
    shared = (centroid(module, tokenizer, hub, head) + own) / 2
    totals = torch.zeros(len(blocks), blocks[0].mlp.down_proj.in_features)
    for sentence in language:
        states = read(module, tokenizer, sentence, head)
        for layer, (block, state) in enumerate(zip(blocks, states, strict=True)):
            target = (shared if layer < boundary else own)[layer]
            moves = state["activations"][:, None] * block.mlp.down_proj.weight.T.float()
            if "after" in state:
                moves = moves * (state["after"] / state["before"])
            near = torch.nn.functional.cosine_similarity
            change = near(state["mid"] + moves, target[None], dim=1) - near(state["mid"], target, dim=0)
            totals[layer] += change.cpu()
    chosen = []
    for layers in (range(boundary), range(boundary, len(blocks))):
        scores = totals[list(layers)].flatten()
        places = scores.argsort(descending=True, stable=True)[:top].tolist()
        chosen.append([(layers[place // totals.shape[1]], place % totals.shape[1]) for place in places])
    return chosen


def centroid(module, tokenizer, sentences, head):
    """The mean state after each block."""
    return sum(
        torch.stack([state["post"] for state in read(module, tokenizer, sentence, head)]) for sentence in sentences
    ) / len(sentences)


@torch.inference_mode()
def read(module, tokenizer, sentence, head):
    """One forward pass of one sentence, read with hooks, in float32."""
    found = [{} for _ in module.model.layers]
    handles = []
    for place, block in zip(found, module.model.layers, strict=True):

        def before(name, place=place):
            return lambda _, args: place.update({name: args[0][0, -1].float()})

        def after(name, place=place):
            return lambda _, __, output: place.update({name: output[0, -1].float()})

        gemma = hasattr(block, "pre_feedforward_layernorm")
        mid = block.pre_feedforward_layernorm if gemma else block.post_attention_layernorm
        handles += [
            mid.register_forward_pre_hook(before("mid")),
            block.mlp.down_proj.register_forward_pre_hook(before("activations")),
            block.register_forward_hook(after("post")),
        ]
        if gemma:
            norm = block.post_feedforward_layernorm
            handles += [norm.register_forward_pre_hook(before("before")), norm.register_forward_hook(after("after"))]
    inputs = tokenizer(sentence, return_tensors="pt").to(module.device)
    (module if head else module.model)(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    return found
