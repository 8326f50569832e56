"""How far sets move the stream, against sums of plain hooks and real ablations; random sets that move it as far."""

import copy

import pytest
import torch

import tnkit as tn
from tnkit.interventions.displacement import displacement, equal_displacement
from tnkit.testing import SENTENCES, byte_tokenizer, tiny_model, tiny_module
from tnkit.tests import oracle

MEMBERS = tn.NeuronSet(tuple((layer, neuron) for layer in (0, 1, 3) for neuron in range(0, 40, 5)), (4, 48))


def summed(name, model, neurons):
    """The mean over sentences of the sum of a set's contributions, from hooks, (layer, hidden), float64."""
    total = torch.zeros(model.n_layers, model.hidden_size, dtype=torch.float64)
    for sentence in SENTENCES:
        ids = torch.tensor([model.tokenizer(sentence)["input_ids"]])
        _, added = oracle.contributions(tiny_module(name), model.blocks_path, model.sites, ids)
        for layer, neuron in neurons:
            total[layer] += added[layer][neuron] / len(SENTENCES)
    return total


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "granite"])
def test_displacement_is_the_sum_that_hooks_see(name):
    model = tiny_model(name)
    found = displacement(model, tn.capture(model, SENTENCES, progress=False), MEMBERS)
    oracle.assert_near(found, summed(name, model, MEMBERS))
    assert (found[2] == 0).all()


def test_switching_a_layers_members_off_moves_the_state_back_by_it():
    model, members = tiny_model("llama"), tn.NeuronSet(tuple(pair for pair in MEMBERS if pair[0] == 1), MEMBERS.shape)
    before = tn.capture(model, SENTENCES, progress=False)
    with tn.Ablation(model, members):
        after = tn.capture(model, SENTENCES, keep=["post"], layers=[1], progress=False)
    moved = after.post[0].double().mean(dim=0) - before.post[1].double().mean(dim=0)
    oracle.assert_near(-moved, displacement(model, before, members)[1])


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_equal_displacement_moves_the_state_as_far_as_the_set(name):
    model = tiny_model(name)
    captured, wanted = tn.capture(model, SENTENCES, progress=False), summed(name, model, MEMBERS).norm(dim=1)
    controls = [equal_displacement(model, captured, MEMBERS, seed=seed) for seed in range(4)]
    for control in controls:
        assert not set(control) & set(MEMBERS)
        assert {layer: len(drawn) for layer, drawn in control.by_layer().items()} == {0: 8, 1: 8, 3: 8}
        shares = summed(name, model, control).norm(dim=1) / wanted
        for layer, share in control.provenance["control"]["reached"].items():
            assert float(shares[int(layer)]) == pytest.approx(share, rel=1e-4)
            assert abs(share - 1) < 0.0501
    assert len({control.pairs for control in controls}) == 4
    assert controls[2].pairs == equal_displacement(model, captured, MEMBERS, seed=2).pairs


def test_only_neurons_that_push_the_same_way_can_replace_a_planted_set():
    """Members 0 to 4 push along one axis; in layer 1 neurons 5 to 14 do so, too, in layer 2 no other writes at all."""
    module = copy.deepcopy(tiny_module("llama"))
    with torch.no_grad():
        for layer, pushing in {1: 15, 2: 5}.items():
            weight = 0.05 * torch.randn(32, 48, generator=torch.Generator().manual_seed(layer)) * (layer == 1)
            weight[:, :pushing] = 0
            weight[0, :pushing] = 3
            module.model.layers[layer].mlp.down_proj.weight.copy_(weight)
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    captured = tn.Activations((1, 2), torch.arange(2), activations=torch.ones(2, 2, 48), scale=torch.ones(2, 2))
    members = tn.NeuronSet(tuple((layer, neuron) for layer in (1, 2) for neuron in range(5)), (4, 48))
    assert displacement(model, captured, members)[:, 0].tolist() == pytest.approx([0, 15, 15, 0])
    assert displacement(model, captured, members.matched(seed=0)).norm(dim=1)[1] < 10
    control = equal_displacement(model, captured, members, seed=0)
    assert set(control.by_layer()[1]) <= set(range(5, 15))
    assert control.provenance["control"]["reached"] == {"1": pytest.approx(1), "2": 0}


def test_more_neurons_reach_what_as_many_cannot():
    """Members push 3 along one axis each, the others 1: five others reach a third, fifteen all of it."""
    module = copy.deepcopy(tiny_module("llama"))
    with torch.no_grad():
        weight = torch.zeros(32, 48)
        weight[0, :5], weight[0, 5:] = 3, 1
        module.model.layers[1].mlp.down_proj.weight.copy_(weight)
    model = tn.load_model(module, tokenizer=byte_tokenizer())
    captured = tn.Activations((1,), torch.arange(2), activations=torch.ones(1, 2, 48), scale=torch.ones(1, 2))
    members = tn.NeuronSet(tuple((1, neuron) for neuron in range(5)), (4, 48))
    as_many = equal_displacement(model, captured, members, seed=0)
    assert (len(as_many), as_many.provenance["control"]["reached"]) == (5, {"1": pytest.approx(1 / 3)})
    more = equal_displacement(model, captured, members, seed=0, more=True)
    assert (len(more), more.provenance["control"]["reached"]) == (15, {"1": pytest.approx(1)})
    assert not set(more) & set(members)


def test_a_control_survives_being_saved(tmp_path):
    model = tiny_model()
    control = equal_displacement(model, tn.capture(model, SENTENCES, progress=False), MEMBERS, seed=0)
    again = tn.NeuronSet.load(control.save(tmp_path / "set.json"))
    assert (again, again.provenance) == (control, control.provenance)


def test_what_cannot_be_moved_is_refused():
    model = tiny_model()
    captured = tn.capture(model, SENTENCES[:2], layers=[0, 1], progress=False)
    with pytest.raises(tn.TnkitError, match=r"neurons in layers \[3\], which were not captured"):
        displacement(model, captured, MEMBERS)
    full = tn.NeuronSet(tuple((0, neuron) for neuron in range(40)), (4, 48))
    with pytest.raises(tn.TnkitError, match="layer 0 has 8 other neurons, too few for a control of 40"):
        equal_displacement(model, captured, full, seed=0)
    other = tn.capture(tiny_model("qwen3"), SENTENCES[:2], progress=False)
    with pytest.raises(tn.TnkitError, match="were made with"):
        displacement(model, other, MEMBERS)
