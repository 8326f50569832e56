"""Sentences: corpora of parallel text, wherever they come from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["variants"])
