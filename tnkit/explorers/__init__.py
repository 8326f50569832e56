"""Explorers for notebooks: look at spaces, neurons, ablations and detections by moving controls.

    tn.explore_spaces(model, corpus)          # where languages lie, layer by layer, neurons on and off
    tn.explore_neurons(model, corpus)         # which neurons were found, and what each answers to and writes
    tn.explore_ablation(model, corpus)        # what switching them off does, beside controls
    tn.explore_detection(model, corpus)       # find neurons, watch, stop, save, hand on

Each is a widget with a picture: `figure()` gives it to code, `save()` writes it with its parameters.

>>> from tnkit.testing import tiny_corpus, tiny_model
>>> explorer = explore_detection(tiny_model(), tiny_corpus())
>>> explorer.distance.value
'cosine'
"""

from tnkit.explorers.ablation import explore_ablation
from tnkit.explorers.detection import explore_detection
from tnkit.explorers.neurons import explore_neurons
from tnkit.explorers.spaces import explore_spaces

__all__ = ["explore_ablation", "explore_detection", "explore_neurons", "explore_spaces"]
