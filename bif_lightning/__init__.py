"""Bayesian influence functions for any Lightning Trainer. `__init__.pyi` is the table of contents."""

import lazy_loader

# Lazy, so that reading dumps (TensorBoard, the command line) does not wait for torch and Lightning.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
