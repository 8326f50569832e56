"""Directions of the residual stream against plain PyTorch hooks: in captures, from a cached prefix, in generation."""

import copy
from contextlib import contextmanager
from operator import attrgetter

import numpy as np
import pytest
import torch

import tnkit as tn
from tnkit.models.tokens import last_word
from tnkit.testing import SENTENCES, byte_tokenizer, cloud, tiny_model, tiny_module
from tnkit.tests import oracle

QUIET = {"progress": False}
THREE = ("llama", "gemma3", "gpt-neox")  # plain, with norms around each branch, with parallel branches
VECTORS = {1: cloud(32, seed=1), 3: cloud(32, seed=2)}
WAYS = {"out": {}, "set": {"value": 3.0}, "scaled": {"scale": -2.0}, "added": {"add": 1.5}}


def written_out(way, layer, old):
    """The definition, in float64."""
    vector, old = VECTORS[layer].double(), old.double()
    along = (old @ vector) / (vector @ vector)
    new = {
        "out": lambda: old - along * vector,
        "set": lambda: old + (3.0 / vector.norm() - along) * vector,
        "scaled": lambda: old - 3 * along * vector,
        "added": lambda: old + 1.5 * vector,
    }[way]()
    return new.float()


@contextmanager
def hooked(model, way, places):
    """Plain hooks that change what enters the blocks, at some places of one row; None is all of them."""
    blocks, handles = attrgetter(model.blocks_path)(model.module), []
    for layer in VECTORS:

        def hook(_, args, kwargs, layer=layer):
            states = (args[0] if args else kwargs["hidden_states"]).clone()
            for place in range(states.shape[1]) if places is None else places:
                states[0, place] = written_out(way, layer, states[0, place])
            return ((states, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": states})

        handles.append(blocks[layer].register_forward_pre_hook(hook, with_kwargs=True))
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", ["last", "last_word", "all"])
def test_captures_equal_plain_hooks_alone_in_a_batch_and_from_a_cached_prefix(name, way, tokens):
    model, asked = tiny_model(name), tn.Direction(VECTORS, **WAYS[way])
    position = "last_word" if tokens == "last_word" else "last"
    with tn.Ablation(model, asked, tokens=tokens) as ablation:
        found = tn.capture(model, SENTENCES[:4], position=position, keep=["pre", "post"], **QUIET)
        single = [tn.capture(model, [text], position=position, **QUIET).post for text in SENTENCES[:4]]
    assert found.provenance["ablations"] == [ablation.about]
    oracle.assert_near(torch.cat(single, dim=1), found.post, 2e-5)
    for number, sentence in enumerate(SENTENCES[:4]):
        ids = byte_tokenizer()(sentence)["input_ids"]
        read = last_word(byte_tokenizer(), ids) if tokens == "last_word" else len(ids) - 1
        with torch.inference_mode(), hooked(model, way, None if tokens == "all" else [read]):
            states = oracle.hooked(model.module, model.blocks_path, model.sites, torch.tensor([ids]))
        for site in ("pre", "post"):
            expected = torch.stack([layer[read] for layer in states[site]])
            oracle.assert_near(getattr(found, site)[:, number].double(), expected, 2e-5)
    if tokens != "all":
        prefix = tn.LastToken(model, SENTENCES[:4], position=position, keep=["post"], **QUIET)
        assert prefix.cached
        oracle.assert_near(prefix.capture(asked).post, found.post, 2e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", ["last", "prompt", "all"])
def test_generation_equals_full_recomputation(way, tokens):
    model, asked = tiny_model("gemma3"), tn.Direction(VECTORS, **WAYS[way])
    prompts = [byte_tokenizer()(text)["input_ids"] for text in ("Hello there.", "Hi!")]
    width = max(map(len, prompts))
    ids = torch.tensor([[258] * (width - len(one)) + one for one in prompts])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 258, "eos_token_id": None}
    with tn.Ablation(model, asked, tokens=tokens):
        rows = model.module.generate(input_ids=ids, attention_mask=(ids != 258).long(), **options)
    for row, prompt in zip(rows, prompts, strict=True):
        places, said = {"last": [len(prompt) - 1], "prompt": range(len(prompt)), "all": None}[tokens], list(prompt)
        for _ in range(4):
            with torch.inference_mode(), hooked(model, way, places):
                said.append(int(model.module(input_ids=torch.tensor([said]), use_cache=False).logits[0, -1].argmax()))
        assert row[width:].tolist() == said[len(prompt) :]


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("how", [{"add": 0}, {"scale": 1}])
def test_a_strength_of_nothing_changes_no_bit(name, how):
    model = tiny_model(name)
    before = tn.capture(model, SENTENCES, **QUIET)
    with tn.Ablation(model, tn.Direction(VECTORS, **how)) as ablation:
        after = tn.capture(model, SENTENCES, **QUIET)
    assert ablation.count
    assert all(torch.equal(getattr(before, site), getattr(after, site)) for site in ("mid", "post", "activations"))


def test_without_the_difference_of_means_languages_have_one_mean_along_it():
    model = tiny_model()
    of, minus = (tn.capture(model, text, keep=["pre"], **QUIET) for text in (SENTENCES[:3], SENTENCES[3:]))
    asked = tn.Direction.difference(of, minus, layers=[2])
    means = of.pre[2].mean(dim=0) - minus.pre[2].mean(dim=0)
    assert torch.allclose(asked.vectors[2].float(), means, atol=1e-6)
    with tn.Ablation(model, asked, tokens="last"):
        off = tn.capture(model, SENTENCES, keep=["pre"], **QUIET).pre[2]
    assert (off @ (means / means.norm())).abs().max() < 1e-5 * off.norm(dim=1).max()
    with tn.Ablation(model, tn.Direction.difference(of, minus, layers=[2], add=-1), tokens="last"):
        moved = tn.capture(model, SENTENCES[:3], keep=["pre"], **QUIET).pre[2]
    assert torch.allclose(moved.mean(dim=0), minus.pre[2].mean(dim=0), atol=1e-5)
    from_post = [tn.capture(model, text, keep=["post"], **QUIET) for text in (SENTENCES[:3], SENTENCES[3:])]
    assert torch.allclose(tn.Direction.difference(*from_post, layers=[2]).vectors[2], asked.vectors[2], atol=1e-6)


def test_whoever_takes_an_intervention_takes_a_direction():
    model, text, asked = tiny_model(), SENTENCES[:3], tn.Direction(VECTORS, add=1.0)
    with tn.Ablation(model, asked):
        off = tn.behaviour.perplexity(model, text, **QUIET)
        said = tn.behaviour.continuations(model, text, max_new_tokens=4, languages=["en", "ja"], **QUIET)
    assert np.array_equal(tn.behaviour.perplexity(model, text, neurons=asked, **QUIET).nll, off.nll)
    options = {"max_new_tokens": 4, "languages": ["en", "ja"], "tokens": "all", "seeds": 2, **QUIET}
    rivals = {"drawn": lambda seed: tn.Direction({1: cloud(32, seed=seed)}, add=0)}
    found = tn.behaviour.continuations(model, text, neurons=asked, controls=rivals, **options)
    assert found.after == said.before
    assert found.controls["drawn"][1].after == found.before
    assert found.provenance["ablations"][0]["add"] == 1.0
    neurons, texts = tn.NeuronSet(((0, 5),), (4, 48)), {"en": SENTENCES[:3], "it": SENTENCES[3:]}
    beside = {"language": "it", "controls": {"direction": asked}, "measure": "margin", **QUIET}
    compared = tn.ablate(model, texts, neurons, **beside)
    (alone,) = tn.ablate(model, texts, asked, language="it", controls={}, measure="margin", **QUIET).ablated[None]
    assert np.array_equal(compared.controls["direction"][0], alone)
    assert not np.allclose(alone, compared.untouched, atol=1e-4)


def test_a_direction_that_writes_a_token_says_it():
    module = copy.deepcopy(tiny_module("llama"))
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    head = module.get_output_embeddings().weight.detach()
    token = int(head.norm(dim=1).argmax())

    def says(**how):
        with tn.Ablation(model, tn.Direction({3: head[token]}, **how), tokens="last"), torch.inference_mode():
            ids = torch.tensor([byte_tokenizer()("Hello")["input_ids"]])
            return module(input_ids=ids).logits[0, -1].log_softmax(-1)[token]

    doses = [float(says(add=dose)) for dose in (-20, 0, 20)]
    assert doses == sorted(doses)
    assert doses[2] - doses[0] > 1


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: tn.Direction({}), "at least one layer"),
        (lambda: tn.Direction({1: torch.zeros(32)}), "not all 0"),
        (lambda: tn.Direction(VECTORS, add=float("nan")), "must be a finite number"),
        (lambda: tn.Direction(VECTORS, add=1, scale=2), "scale and add exclude each other"),
        (lambda: tn.Ablation(tiny_model(), tn.Direction({4: torch.ones(32)})), "has 4 layers"),
        (lambda: tn.Ablation(tiny_model(), tn.Direction({1: torch.ones(5)})), "a state of 32"),
        (lambda: tn.Ablation(tiny_model(), tn.Direction(VECTORS), value=1.0), "value was given beside it"),
        (lambda: tn.Direction(VECTORS).shape, "holds no neurons"),
        (lambda: tn.Ablation(tiny_model(), tn.Direction(VECTORS))._edit({}, 3), "where only neurons can be changed"),
        (lambda: tn.export_ablated(tiny_model(), tn.Direction(VECTORS), "/nowhere/new"), "export one Intervention"),
        (lambda: tn.Direction.difference(*[tn.capture(tiny_model(), ["a"], layers=[2], **QUIET)] * 2, layers=[2]),
         "capture layer 1, or keep pre"),
    ],
)  # fmt: skip
def test_what_is_no_direction_is_refused(made, message):
    with pytest.raises(tn.TnkitError, match=message):
        made()


def test_a_direction_of_another_model_is_refused():
    other = [tn.capture(tiny_model("qwen3"), text, **QUIET) for text in (SENTENCES[:3], SENTENCES[3:])]
    asked = tn.Direction.difference(*other, layers=[2])
    with pytest.raises(tn.TnkitError, match="these vectors were made with Qwen3ForCausalLM"):
        tn.Ablation(tiny_model(), asked)
