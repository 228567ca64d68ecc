"""Settings of all tests: helper modules, array checks in the whole package, one global seed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from jaxtyping import install_import_hook

# Before the package is first imported: every array annotation of it is checked at every call.
install_import_hook("bif_lightning", "array_types.check_arrays")
