"""What each logger of a Trainer gets: numbers, and pictures and tables by the methods that it has for them."""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import pandas as pd
from lightning_utilities.core.rank_zero import rank_zero_warn
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from bif_lightning.plots import to_png
from bif_lightning.tensorboard.pictures import Picture

LogImage = Callable[[str, Image.Image, int], object]
LogTable = Callable[[str, pd.DataFrame, int], object]

_NOT_IN_MLFLOW = re.compile(r"[^A-Za-z0-9_./ -]")


def by_kind(loggers: Iterable[Any]) -> tuple[list[SummaryWriter], list[Any]]:
    """The writers of those loggers that write TensorBoard events, and all other loggers."""
    writers, others = list[SummaryWriter](), list[Any]()
    for logger in loggers:
        experiment = getattr(logger, "experiment", None)  # a user's logger need not have one
        if isinstance(experiment, SummaryWriter):
            writers.append(experiment)
        else:
            others.append(logger)
    return writers, others


def log_numbers(loggers: Iterable[Any], numbers: Mapping[str, float], step: int) -> None:
    """Log numbers to every logger."""
    for logger in loggers if numbers else ():
        logger.log_metrics(dict(numbers), step=step)


def takes_media(logger: Any) -> bool:
    """Whether a logger takes pictures or tables."""
    return _image_method(logger) is not None or _table_method(logger) is not None


def log_media(
    loggers: Iterable[Any], pictures: Sequence[Picture], tables: Mapping[str, pd.DataFrame], step: int
) -> None:
    """Log pictures and tables, each under its tag, to loggers that take them.

    A logger that fails costs no snapshot, since the dump holds all of it: a warning names the logger.

    Args:
        loggers: WandbLogger, and loggers with its methods log_image and log_table; MLFlowLogger; CometLogger.
        pictures, tables: of one snapshot.
        step: global training step of the snapshot.
    """
    images = [(each.tag, _image(each)) for each in pictures]
    for logger in loggers:
        try:
            _log(_image_method(logger), images, step)
            _log(_table_method(logger), list(tables.items()), step)
        # Whatever the client of a server raises: no connection, no space, an argument that it does not know.
        except Exception as error:
            rank_zero_warn(
                f"{type(logger).__name__} did not take all pictures and tables of a snapshot ({type(error).__name__}: "
                f"{error}). Numbers and dumps are complete; views=['scalars', 'bands'] logs numbers alone"
            )


def _log(method: Callable[[str, Any, int], object] | None, items: Sequence[tuple[str, Any]], step: int) -> None:
    if method is not None:
        for tag, item in items:
            method(tag, item, step)


def _image(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(to_png(picture.figure)[0])).convert("RGB")


def _image_method(logger: Any) -> LogImage | None:
    """How a logger takes a picture."""
    if _has(logger, "log_image"):  # of W&B
        return lambda tag, image, step: logger.log_image(key=tag, images=[image], step=step)
    client = cast(Any, getattr(logger, "experiment", None))
    if not _has(client, "log_image"):
        return None
    if (run := getattr(logger, "run_id", None)) is not None:  # of MLflow, whose client serves all runs
        return lambda tag, image, step: client.log_image(run, image, key=_NOT_IN_MLFLOW.sub("_", tag), step=step)
    return lambda tag, image, step: client.log_image(image, name=tag, step=step)  # of Comet


def _table_method(logger: Any) -> LogTable | None:
    """How a logger takes a table. MLflow and Comet keep tables as files, whose names have the step."""
    if _has(logger, "log_table"):
        return lambda tag, table, step: logger.log_table(key=tag, dataframe=table, step=step)
    client = cast(Any, getattr(logger, "experiment", None))
    if not _has(client, "log_table"):
        return None
    if (run := getattr(logger, "run_id", None)) is not None:
        return lambda tag, table, step: client.log_table(run, table, f"{tag}/step={step:09d}.json")
    return lambda tag, table, step: client.log_table(f"{tag}/step={step:09d}.csv", table, index=False)


def _has(owner: Any, method: str) -> bool:
    return callable(getattr(owner, method, None))
