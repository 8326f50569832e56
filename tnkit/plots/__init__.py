"""Figures: arrays and pandas frames in, matplotlib axes or figures out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in __all__ if name not in ("Axes", "Figure")]  # matplotlib's, for signatures
