"""The interactive explorer for notebooks: spaces, neurons, evidence and detection.

    tn.explore(model, corpus)                 # one application with four views, all showing one choice
    tn.explore_spaces(model, corpus)          # at its map: languages in the residual stream, with neurons on and off
    tn.explore_neurons(model, corpus)         # at its neurons: what activates each and what it writes
    tn.explore_ablation(model, corpus)        # at its evidence: the effect of a set beside controls, and on a prompt
    tn.explore_detection(model, corpus)       # at its detection: find neurons; cancel, save and pass on the results

Each is a widget with a picture: `figure()` returns it, `save()` writes it with its parameters.

>>> from tnkit.testing import tiny_corpus, tiny_model
>>> explore_detection(tiny_model(), tiny_corpus()).state["view"]
'detection'
"""

from tnkit.explorers.views import explore, explore_ablation, explore_detection, explore_neurons, explore_spaces

__all__ = ["explore", "explore_ablation", "explore_detection", "explore_neurons", "explore_spaces"]
