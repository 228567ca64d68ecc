"""Reads what `write` wrote: a whole run as one lazy xarray dataset, and the questions people ask of it.

`__init__.pyi` is the table of contents. Lazy, so that the tab's readers, which need single files of this package, do
not wait for pandas and xarray.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
