"""Loggers with the methods for pictures and tables of those that people use, which keep what they are given."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment


class Keeping(Logger):
    """Takes numbers alone.

    Attributes:
        numbers, pictures, tables: what it was given, as (tag or file, value, step).
    """

    def __init__(self, folder: Path | None = None, name: str = "project", version: Any = "run-1") -> None:
        super().__init__()
        self.folder, self._name, self._version = folder, name, version
        self.numbers: list[tuple[str, float, int | None]] = []
        self.pictures: list[tuple[str, Any, int | None]] = []
        self.tables: list[tuple[str, Any, int | None]] = []

    @property
    def save_dir(self) -> str | None:
        return None if self.folder is None else str(self.folder)

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> Any:
        return self._version

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.numbers += [(tag, value, step) for tag, value in metrics.items()]

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class LikeWandb(Keeping):
    """Has the methods of WandbLogger; a test compares their signatures."""

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.pictures += [(key, image, step) for image in images]

    def log_table(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: int | None = None
    ) -> None:
        self.tables.append((key, dataframe, step))


class MlflowClient:
    """Has the methods of MLflow's client."""

    def __init__(self, logger: Keeping) -> None:
        self.logger = logger

    def log_image(
        self, run_id: str, image: Any, artifact_file: Any = None, key: str | None = None, step: int | None = None
    ) -> None:
        assert run_id == self.logger.version
        assert key is not None
        self.logger.pictures.append((key, image, step))

    def log_table(self, run_id: str, data: Any, artifact_file: str) -> None:
        assert run_id == self.logger.version
        self.logger.tables.append((artifact_file, data, None))


class LikeMlflow(Keeping):
    """One client serves all runs."""

    @property
    def run_id(self) -> str:
        return self.version

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        return MlflowClient(self)


class CometExperiment:
    """Has the methods of Comet's experiment."""

    def __init__(self, logger: Keeping) -> None:
        self.logger = logger

    def log_image(self, image_data: Any, name: str | None = None, step: int | None = None) -> None:
        assert name is not None
        self.logger.pictures.append((name, image_data, step))

    def log_table(self, filename: str, tabular_data: Any = None, headers: Any = False, **format_kwargs: Any) -> None:
        assert format_kwargs == {"index": False}, "arguments of DataFrame.to_csv"
        self.logger.tables.append((filename, tabular_data, None))


class LikeComet(Keeping):
    """One experiment is one run."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        return CometExperiment(self)


class KnownToTheFirst(Keeping):
    """Its run begins on rank 0, so that other ranks do not know the version, as of W&B."""

    @property
    def version(self) -> Any:
        return self._version if os.environ.get("RANK", "0") == "0" else None
