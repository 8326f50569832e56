"""From activations to centroids, scores and transfer neurons."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["scoring"])
