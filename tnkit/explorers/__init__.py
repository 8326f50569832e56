"""Interactive explorers for notebooks: spaces, neurons, ablations and detections.

    tn.explore(model, corpus)                 # one application: map, neurons, evidence, detection
    tn.explore_spaces(model, corpus)          # languages in the residual stream, with neurons on and off
    tn.explore_neurons(model, corpus)         # the neurons found, what activates each and what it writes
    tn.explore_ablation(model, corpus)        # the effect of ablating them, compared with controls
    tn.explore_detection(model, corpus)       # find neurons; stop, save and pass on the results

Each of the others is a widget with a picture: `figure()` returns it, `save()` writes it with its parameters.

>>> from tnkit.testing import tiny_corpus, tiny_model
>>> explorer = explore_detection(tiny_model(), tiny_corpus())
>>> explorer.distance.value
'cosine'
"""

from tnkit.explorers.ablation import explore_ablation
from tnkit.explorers.app import explore
from tnkit.explorers.detection import explore_detection
from tnkit.explorers.neurons import explore_neurons
from tnkit.explorers.spaces import explore_spaces

__all__ = ["explore", "explore_ablation", "explore_detection", "explore_neurons", "explore_spaces"]
