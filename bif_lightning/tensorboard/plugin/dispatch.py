"""Dispatches a question by its name to the function that answers it from files."""

from collections.abc import Callable, Mapping

from bif_lightning.exceptions import UnreadableFileError
from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError
from bif_lightning.tensorboard.plugin.compare import common, compare, compare_ranks
from bif_lightning.tensorboard.plugin.entries import cell
from bif_lightning.tensorboard.plugin.examples import found, samples, text, thumbnail
from bif_lightning.tensorboard.plugin.exports import export_classes, export_compare_ranks, export_top, export_window
from bif_lightning.tensorboard.plugin.orders import order
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.ranking import ranking, ranking_at
from bif_lightning.tensorboard.plugin.run_files import RunFiles
from bif_lightning.tensorboard.plugin.runs import description, dump_lines
from bif_lightning.tensorboard.plugin.tokens import tokens
from bif_lightning.tensorboard.plugin.tops import top
from bif_lightning.tensorboard.plugin.trajectories import trajectory_points
from bif_lightning.tensorboard.plugin.trust import chains, trust_points
from bif_lightning.tensorboard.plugin.views import classes, view

OF_ONE: Mapping[str, Callable[[RunFiles, Parameters], Answer]] = {
    "cell": cell,
    "chains": chains,
    "classes": classes,
    "description": description,
    "dump_lines": dump_lines,
    "export_classes": export_classes,
    "export_top": export_top,
    "export_window": export_window,
    "found": found,
    "order": order,
    "ranking": ranking,
    "ranking_at": ranking_at,
    "samples": samples,
    "text": text,
    "thumbnail": thumbnail,
    "tokens": tokens,
    "top": top,
    "trajectory_points": trajectory_points,
    "trust_points": trust_points,
    "view": view,
}
OF_TWO: Mapping[str, Callable[[RunFiles, RunFiles, Parameters], Answer]] = {
    "common": common,
    "compare": compare,
    "compare_ranks": compare_ranks,
    "export_compare_ranks": export_compare_ranks,
}


def read(name: str, here: RunFiles, there: RunFiles | None, parameters: Parameters) -> Answer:
    """Answer one question; errors become answers, and nothing is raised.

    Args:
        name: of the question.
        here: the run.
        there: the other run of a comparison.
        parameters: of the request.
    """
    try:
        if there is not None:
            return OF_TWO[name](here, there, parameters)
        return OF_ONE[name](here, parameters)
    except RefusedError as refusal:
        return refusal.answer()
    except (UnreadableFileError, OSError) as error:
        return RefusedError(422, f"The file cannot be read: {error}.").answer()
    except MemoryError:
        return RefusedError(503, "This takes more memory than a reader may have; ask for less at once.").answer()
    # A file of unknown origin can break any rule that a reader takes for granted.
    except Exception as error:
        return RefusedError(422, f"The file cannot be understood ({type(error).__name__}: {error}).").answer()
