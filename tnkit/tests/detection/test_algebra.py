"""What several sets share, against Python's own sets."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

import tnkit as tn

SHAPE = (4, 20)


def drawn(seed):
    """50 neurons of 80, in random order."""
    places = np.random.default_rng(seed).choice(80, 50, replace=False)
    return tn.NeuronSet(tuple((int(n) // 20, int(n) % 20) for n in places), SHAPE, tuple(map(float, range(50))))


SETS = {name: drawn(seed) for seed, name in enumerate(("ja", "ko", "nl", "it"))}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_shared_counts_in_how_many_sets_a_neuron_is(number):
    counts = Counter(chain(*map(set, SETS.values())))
    exactly = {pair for pair, count in counts.items() if count == number}
    at_least = {pair for pair, count in counts.items() if count >= number}
    assert exactly and (exactly != at_least) == (number < 4)
    assert set(tn.shared(SETS, exactly=number)) == exactly
    assert set(tn.shared(SETS, at_least=np.int64(number))) == at_least


def test_shared_by_all_is_the_default_and_keeps_the_first_order():
    everywhere = set.intersection(*map(set, SETS.values()))
    assert tn.shared(SETS).pairs == tuple(pair for pair in SETS["ja"] if pair in everywhere)
    assert tn.shared(SETS).provenance["selection"] == {"at_least": 4}


def test_own_is_in_no_other_set_and_keeps_its_scores():
    own = tn.own(SETS, "ko")
    others = set().union(*(set(SETS[name]) for name in ("ja", "nl", "it")))
    assert 0 < len(own) < 50
    assert own.pairs == tuple(pair for pair in SETS["ko"] if pair not in others)
    assert own.scores == tuple(float(SETS["ko"].pairs.index(pair)) for pair in own)
    assert own.provenance["selection"] == {"own": "ko"}


def test_a_set_survives_being_saved(tmp_path):
    for neurons in (tn.own(SETS, "ja"), tn.shared(SETS, at_least=2)):
        again = tn.NeuronSet.load(neurons.save(tmp_path / "set.json"))
        assert (again, again.provenance) == (neurons, neurons.provenance)


def test_what_cannot_be_is_refused():
    with pytest.raises(tn.TnkitError, match="exactly=5 is more than the 4 sets"):
        tn.shared(SETS, exactly=5)
    with pytest.raises(tn.TnkitError, match="not both"):
        tn.shared(SETS, exactly=2, at_least=2)
    with pytest.raises(tn.TnkitError, match="at_least=0 must be at least 1"):
        tn.shared(SETS, at_least=0)
    with pytest.raises(tn.TnkitError, match="there are no sets"):
        tn.shared({})
    with pytest.raises(tn.TnkitError, match="there is no set 'de'; there are ja, ko"):
        tn.own(SETS, "de")
    with pytest.raises(tn.TnkitError, match="sets of different models do not compare"):
        tn.shared({"ja": SETS["ja"], "ko": tn.NeuronSet((), (4, 21))})
