"""Patches against plain PyTorch hooks: in captures, alone and in a batch, from a cached prefix, in generation."""

import copy
from contextlib import contextmanager
from operator import attrgetter

import pytest
import torch

import tnkit as tn
from tnkit.interventions.patch import PATCHED
from tnkit.models.tokens import last_word
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module
from tnkit.tests import oracle
from tnkit.tests.oracle import assert_near

QUIET = {"progress": False}
FIVE = ("llama", "gemma3", "gpt-neox", "qwen2-moe", "gpt2")
DENSE = ("llama", "gemma3", "gpt-neox", "cohere", "gpt2")
SOURCE, INTO = SENTENCES[:3], SENTENCES[3:]
EQUAL = ["Abc def.", "Ghi jkl."], ["Mno pqr!", "Stu vwx."]  # pairs with as many tokens


def ids_of(text):
    return torch.tensor([byte_tokenizer()(text)["input_ids"]])


@contextmanager
def plain(model, site, layer, value, place, neurons=None):
    """One state of one unpadded sentence replaced by plain hooks; what captures read of post is left to the caller."""
    block, sites, handles = attrgetter(model.blocks_path)(model.module)[layer], model.sites[layer], []
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731

    def setter(_, args):
        states = args[0].clone()
        flat = states.reshape(-1, states.shape[-1])
        flat[place] = value
        return (flat.reshape(states.shape), *args[1:])

    def columns(_, args):
        states = args[0].clone().reshape(-1, args[0].shape[-1])
        states[place, neurons] = value
        return (states.reshape(args[0].shape), *args[1:])

    def after(_, __, output):
        states = first(output).clone()
        states[0, place] = value
        return (states, *output[1:]) if isinstance(output, tuple) else states

    if site == "pre":
        handles.append(block.register_forward_pre_hook(setter))
    elif site == "post":
        handles.append(block.register_forward_hook(after))
    elif site == "activations":
        handles.append(attrgetter(sites.last_map)(block).register_forward_pre_hook(columns))
    yield
    for handle in handles:
        handle.remove()


def final_states(model, text):
    with torch.inference_mode():
        return model.module(ids_of(text), output_hidden_states=True).hidden_states[-1][0]


ONE = [
    (name, site) for name in FIVE for site in ("pre", "post", "activations") if (name, site) != (FIVE[3], "activations")
]


@pytest.mark.parametrize(("name", "site"), ONE)
@pytest.mark.parametrize("tokens", ["last", "last_word"])
def test_a_patch_equals_plain_hooks_alone_in_a_batch_and_from_a_cached_prefix(name, site, tokens):
    model, layer = tiny_model(name), 2
    given = tn.patch(model, SOURCE, INTO, site=site, layers=[layer], tokens=tokens, **QUIET)
    position = {"position": tokens, "last_layer": "normed", "keep": ["post"], "layers": [3]}
    with tn.Ablation(model, given, tokens=tokens) as ablation:
        batch = tn.capture(model, INTO, **position, **QUIET)
        alone = torch.cat([tn.capture(model, [text], **position, **QUIET).post for text in INTO], dim=1)
    assert ablation.count == 2 * 3 * (48 if site == "activations" else 1)
    cached = tn.LastToken(model, INTO, **position, **QUIET).capture(given).post
    sources = tn.capture(model, SOURCE, position=tokens, keep=["pre", "post", "activations"], **QUIET)
    for row, text in enumerate(INTO):
        ids = ids_of(text)[0].tolist()
        place = last_word(model.tokenizer, ids) if tokens == "last_word" else len(ids) - 1
        with plain(model, site, layer, sources.tensors()[site][layer, row], place, range(48)):
            expected = final_states(model, text)[place]
        for found in (batch.post, alone, cached):
            assert_near(found[0, row], expected, 1e-4)


def kinds_of(name):
    """The sites and tokens that can be patched in a model, but for activations of experts, which are set anew."""
    sites = [site for site in PATCHED if not (site == "mid" and name == "gpt-neox")]
    routed = name in ("qwen2-moe", "mixtral", "qwen3-moe")
    yield from ((site, "last") for site in sites if not (routed and site == "activations"))
    yield from ((site, "prompt") for site in sites if site in ("mid", "post"))
    yield from () if routed else [("contributions", "prompt")]


SELF = [(name, *kind) for name in (*FIVE, "olmo2") for kind in kinds_of(name)]


@pytest.mark.parametrize(("name", "site", "tokens"), SELF)
def test_a_sentence_patched_with_itself_keeps_every_bit(name, site, tokens):
    model = tiny_model(name)
    untouched = tn.capture(model, SENTENCES, keep=["pre", "post"], **QUIET)
    given = tn.patch(model, SENTENCES, SENTENCES, site=site, tokens=tokens, **QUIET)
    with tn.Ablation(model, given, tokens=tokens) as ablation:
        found = tn.capture(model, SENTENCES, keep=["pre", "post"], **QUIET)
    assert torch.equal(found.post, untouched.post) and torch.equal(found.pre, untouched.pre)
    assert ablation.count > 0


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("site", ["pre", "post"])
def test_everything_patched_gives_the_output_of_the_source(name, site):
    model, (source, into) = tiny_model(name), EQUAL
    given = tn.patch(model, source, into, site=site, tokens="prompt", **QUIET)
    alike = model.tokenizer(into, return_tensors="pt")["input_ids"]
    other = model.tokenizer(source, return_tensors="pt")["input_ids"]
    with torch.inference_mode(), tn.Ablation(model, given, tokens="prompt"):
        patched = model.module(alike).logits
    with torch.inference_mode():
        expected = model.module(other).logits
    assert_near(patched, expected, 1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "olmo2", "qwen2-moe", "mixtral"])
def test_mid_decides_what_leaves_a_layer(name):
    model = tiny_model(name)
    given = tn.patch(model, SOURCE, INTO, site="mid", layers=[1], **QUIET)
    with tn.Ablation(model, given, tokens="last"):
        found = tn.capture(model, INTO, keep=["mid", "post"], **QUIET)
    expected = tn.capture(model, SOURCE, keep=["mid", "post"], **QUIET)
    assert_near(found.mid[1], expected.mid[1], 1e-6)
    assert_near(found.post[1], expected.post[1], 1e-5)
    assert not torch.allclose(found.post[0], expected.post[0], atol=1e-3)


@pytest.mark.parametrize("name", [*DENSE, "qwen2-moe", "mixtral", "granite-moe-shared"])
def test_contributions_are_taken_away_and_added_as_the_definition_says(name):
    model, layer = tiny_model(name), 2
    width = model.widths[layer]
    some = [(layer, neuron) for neuron in range(0, width, 3)]
    given = tn.patch(model, SOURCE, INTO, site="contributions", neurons=some, **QUIET)
    with tn.Ablation(model, given, tokens="last"):
        found = tn.capture(model, INTO, keep=["post"], **QUIET).post[layer]
    moved = tn.capture(model, INTO, keep=["post"], **QUIET).post[layer].clone()
    for sign, texts in ((1, SOURCE), (-1, INTO)):
        held = tn.capture(model, texts, **QUIET)
        activations = held.of_layer(layer) * held.scale[layer][:, None]
        vectors = model.value_vectors(layer).double() * model.output_gain(layer)
        chosen = [neuron for _, neuron in some]
        moved += sign * (activations[:, chosen].double() @ vectors[chosen]).float()
    assert_near(found, moved, 1e-5)


@pytest.mark.parametrize("name", FIVE)
def test_what_a_set_adds_is_restored_where_all_neurons_are_off(name):
    model = tiny_model(name)
    everything = [(1, neuron) for neuron in range(model.widths[1])]
    own = tn.patch(model, INTO, INTO, site="contributions", neurons=everything, **QUIET)
    untouched = tn.capture(model, INTO, keep=["post"], **QUIET)
    with tn.Ablation(model, [tn.Intervention(everything), own], tokens="last"):
        restored = tn.capture(model, INTO, keep=["post"], **QUIET)
    with tn.Ablation(model, everything, tokens="last"):
        off = tn.capture(model, INTO, keep=["post"], **QUIET)
    if not model.experts_of(1):  # biases of the last map stay where its neurons are off
        assert_near(restored.post, untouched.post, 1e-4)
    assert (off.post[1] - untouched.post[1]).abs().max() > 10 * (restored.post[1] - untouched.post[1]).abs().max()


def test_the_mean_of_another_language_is_given_to_every_sentence():
    model, some = tiny_model(), [(1, 3), (1, 7), (2, 9)]
    given = tn.patch(model, SOURCE[:2], INTO, site="activations", neurons=some, mean=True, **QUIET)
    same = tn.Intervention(some, value="mean", of=tn.capture(model, SOURCE[:2], **QUIET))
    both = []
    for asked in (given, same):
        with tn.Ablation(model, asked, tokens="last"):
            both.append(tn.capture(model, INTO, **QUIET).post)
    assert_near(both[0], both[1], 1e-6)


def test_a_planted_neuron_that_writes_a_tokens_row_carries_its_language():
    """A neuron of layer 3 writes the letter Q where the last word is Q-like; patched, the other sentence says Q."""
    module = copy.deepcopy(tiny_module("llama"))
    token = byte_tokenizer()("Q")["input_ids"][-1]
    with torch.no_grad():
        row = module.lm_head.weight[token] / module.model.norm.weight
        module.model.layers[3].mlp.down_proj.weight[:, 9] = 40 * row / row.norm()
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    captured = tn.capture(model, SENTENCES, keep=["activations"], **QUIET).activations[3, :, 9]
    high, low = int(captured.argmax()), int(captured.argmin())
    given = tn.patch(model, [SENTENCES[high]], [SENTENCES[low]], site="contributions", neurons=[(3, 9)], **QUIET)
    logits = []
    for asked in (given, tn.Intervention([])):
        with torch.inference_mode(), tn.Ablation(model, asked, tokens="last"):
            logits.append(model.module(ids_of(SENTENCES[low])).logits[0, -1].log_softmax(-1))
    assert logits[0][token] > logits[1][token] + 1
    assert int((logits[0] - logits[1]).argmax()) == token


def test_generation_begins_from_the_patched_prompt_and_a_comparison_takes_it():
    model, (source, into) = tiny_model(), EQUAL
    given = tn.patch(model, source, into, layers=[3], **QUIET)
    first = lambda texts, **how: tn.behaviour.continuations(  # noqa: E731
        model, texts, max_new_tokens=1, languages=["en", "it"], progress=False, **how
    )
    assert first(into, neurons=given).after == first(source).before
    texts = {"en": SOURCE, "it": INTO}
    english = tn.patch(model, SOURCE, INTO, layers=[2], **QUIET)
    compared = tn.ablate(model, texts, english, language="it", controls={}, **QUIET)
    assert compared.at(2).loc["the set", "mean"] == 1.0  # its states are those of the translation


def test_a_capture_records_what_was_patched():
    model = tiny_model()
    abouts = []
    for source in (SOURCE, SOURCE[::-1]):
        with tn.Ablation(model, tn.patch(model, source, INTO, layers=[1], **QUIET), tokens="last"):
            (about,) = tn.capture(model, INTO, **QUIET).provenance["ablations"]
        abouts.append(about)
    assert abouts[0]["patch"] == "post" and abouts[0]["layers"] == [1] and abouts[0]["tokens"] == "last"
    assert abouts[0]["values"] != abouts[1]["values"]


WRONG = {
    "site": ({"site": "between"}, "must be one of pre, mid"),
    "tokens": ({"tokens": "all"}, "must be one of last, last_word, prompt"),
    "numbers": ({"source": SOURCE[:2]}, "2 source and 3 target sentences"),
    "lengths": ({"tokens": "prompt"}, "positions do not match"),
    "twice": ({"into": [INTO[0], INTO[0], INTO[1]]}, "0 and 1 have the same tokens"),
    "neurons": ({"neurons": [(0, 1)]}, "neurons= is for activations and contributions"),
    "layer": ({"layers": [9]}, "layer 9 is not in"),
    "neuron": ({"site": "activations", "neurons": [(0, 48)]}, "outside"),
    "nowhere": ({"site": "activations", "neurons": [(0, 1)], "layers": [2]}, "no neurons to patch"),
    "each": ({"site": "activations", "tokens": "prompt"}, 'give tokens="last" here'),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_patched_is_one_sentence(name):
    how, message = WRONG[name]
    with pytest.raises(tn.TnkitError, match=message):
        tn.patch(tiny_model(), **{"source": SOURCE, "into": INTO, **how}, **QUIET)


def test_other_sentences_scopes_and_models_are_refused():
    model = tiny_model()
    given = tn.patch(model, SOURCE, INTO, layers=[1], **QUIET)
    with pytest.raises(tn.TnkitError, match='is of tokens="last", not "all"'):
        tn.Ablation(model, given)
    with pytest.raises(tn.TnkitError, match="has no source for"), tn.Ablation(model, given, tokens="last"):
        tn.capture(model, SOURCE, **QUIET)
    with pytest.raises(tn.TnkitError, match="were made with"):
        tn.Ablation(tiny_model("qwen3"), given, tokens="last")
    assert not oracle.hooked.__defaults__ and tn.capture(model, SOURCE, **QUIET).provenance.get("ablations", []) == []
