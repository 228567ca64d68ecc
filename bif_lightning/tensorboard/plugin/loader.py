"""The entry point that TensorBoard loads. It imports only TensorBoard: a failure here would end TensorBoard."""

import argparse
import logging
from typing import Any

from tensorboard.plugins import base_plugin

logger = logging.getLogger(__name__)


class InfluenceLoader(base_plugin.TBLoader):
    """Loads the Influence tab; where that fails, TensorBoard runs without it."""

    def define_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds `--influence_hosts`."""
        parser.add_argument_group("Influence plugin").add_argument(
            "--influence_hosts",
            metavar="NAMES",
            type=str,
            default="",
            help="Further host names, separated by commas, by which a browser may ask for influence dumps of a "
            "TensorBoard that is bound to this machine alone: those of a proxy in front of it. Names such as localhost "
            "are always allowed.",
        )

    def load(self, context: base_plugin.TBContext) -> Any:
        """The plugin, or None where it cannot be loaded."""
        try:
            from bif_lightning.tensorboard.plugin.plugin import InfluencePlugin

            return InfluencePlugin(context)
        # Whatever is broken here, the other tabs are not.
        except Exception as error:
            logger.warning("The Influence tab is left out: %s: %s", type(error).__name__, error)
            return None
