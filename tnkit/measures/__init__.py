"""What changed when neurons were switched off, and what activates neurons."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["behaviour", "geometry", "harness", "lens", "patching", "specificity"]
)
