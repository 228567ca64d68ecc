"""Matplotlib figures of influence, drawn on an Agg canvas: no pyplot, no global settings, no files.

Blue helps, orange hurts, white is zero, in every figure and for every quantity.
"""

from bif_lightning.plots.cards import extremes as extremes
from bif_lightning.plots.lines import chain_losses as chain_losses
from bif_lightning.plots.lines import trajectories as trajectories
from bif_lightning.plots.matrices import heatmap as heatmap
from bif_lightning.plots.matrices import influence_evolution as influence_evolution
from bif_lightning.plots.matrices import label_means as label_means
from bif_lightning.plots.style import to_png as to_png
