"""Outputs of a snapshot: its dump, and values for the loggers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn

from bif_lightning.archive.schema import INTEGRATED_FILE
from bif_lightning.archive.write import write_dump, write_integrated, write_samples
from bif_lightning.archive.write.provenance import provenance
from bif_lightning.data.dataset import Examples, digest
from bif_lightning.data.describe import Describe, describe_samples
from bif_lightning.data.token_texts import Decoder, with_tokens
from bif_lightning.estimation.matrices import Labels
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples
from bif_lightning.storage.atomic import sweep_temporaries
from bif_lightning.tensorboard.pictures import Picture, pictures
from bif_lightning.tensorboard.summaries import QUERIES, VIEWS, choose_queries, numbers, write_summaries
from bif_lightning.tensorboard.tables import tables
from bif_lightning.trainer.history import history_of
from bif_lightning.trainer.loggers import by_kind, log_media, log_numbers, takes_media
from bif_lightning.trainer.position import TrainingPosition
from bif_lightning.trainer.problem import Attribution

Precision = Literal["full", "10bit"]


@dataclass
class Outputs:
    """The folder and the loggers of one run, and the description of its examples.

    Construct it inside the guard, since it reads the datasets.

    Attributes:
        directory: folder of the dumps; None writes nothing (a fast_dev_run).
        tokenizer: decodes token ids to texts.
        precision: precision of the matrices in the dumps.
        views: what loggers get; empty if logging is off.
        pairs: (train id, query id) to show as separate curves.
        integrates: whether each dump is added to the influence over the whole training.
    """

    directory: Path | None
    attribution: Attribution
    describe: Describe | None
    tokenizer: Decoder | None
    precision: Precision
    views: Sequence[str] = VIEWS
    pairs: Sequence[tuple[str, str]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    introduced: bool = False
    integrates: bool = True

    def __post_init__(self) -> None:
        self.train: Samples = self._described(*self.attribution.train)
        same = self.attribution.problem.query is self.attribution.problem.train
        self.query: Samples = self.train if same else self._described(*self.attribution.query)
        problem = self.attribution.problem
        named = {"train": problem.train, "query": problem.query, "training": problem.training}
        # Type, length and a hash of some examples.
        self.fingerprints = {name: _fingerprint(examples) for name, examples in named.items()}

    def _described(self, dataset: Any, indices: Sequence[int]) -> Samples:
        samples = describe_samples(dataset, indices, self.describe)
        if self.attribution.problem.tokens is None:
            return samples
        return with_tokens(samples, dataset, indices, self.describe, self.tokenizer)

    @property
    def labels(self) -> Labels | None:
        """Class indices of both axes; None if either has none."""
        if self.train.labels is None or self.query.labels is None:
            return None
        return Labels(self.train.labels, self.query.labels)

    def open(self) -> None:
        """Create the folder and write the description of the examples.

        Raises:
            ValueError: the folder holds the samples of another run.
            OSError: the folder cannot be written.
        """
        if self.directory is not None:
            write_samples(self.directory, self.train, self.query)
            sweep_temporaries(self.directory)

    def write(self, position: TrainingPosition, estimate: Estimate) -> Path | None:
        """Write the dump of the snapshot at this position of training, and add it to the sum over the training."""
        if self.directory is None:
            return None
        path = write_dump(
            self.directory,
            estimate,
            step=position.step,
            epoch=position.epoch,
            train=self.train,
            query=self.query,
            metrics=position.metrics,
            hyperparameters=position.hyperparameters,
            provenance={**provenance(), **self.settings, "loss": self.attribution.loss, "data": self.fingerprints},
            precision=self.precision,
        )
        if self.integrates:
            update_integrated(self.directory)
        return path

    def log(self, trainer: Any, position: TrainingPosition, estimate: Estimate) -> None:
        """Log the numbers to every logger, and pictures and tables to those that take them."""
        if not self.views:
            return
        step, columns = position.step, choose_queries(self.query, QUERIES)
        writers, others = by_kind(trainer.loggers)
        takers = list(filter(takes_media, others))
        drawn = self._drawn(step, estimate, columns) if writers or takers else []
        for writer in writers:
            write_summaries(
                writer,
                estimate,
                step=step,
                train=self.train,
                query=self.query,
                pairs=self.pairs,
                views=self.views,
                drawn=drawn,
                introduce=not self.introduced,
            )
        self.introduced = True
        if others:
            found = numbers(estimate, self.train, self.query, views=self.views, pairs=self.pairs)
            log_numbers(others, {tag: value for tag, value, _ in found}, step)
        if takers:
            listed = "tables" in self.views
            lists = tables(estimate, self.train, self.query, step=step, columns=columns) if listed else {}
            log_media(takers, drawn, lists, step)

    def _drawn(self, step: int, estimate: Estimate, columns: Sequence[int]) -> list[Picture]:
        history = None
        if self.directory is not None and "trajectories" in self.views:
            history = history_of(
                self.directory, step, estimate, self.train, self.query, pairs=self.pairs, column=columns[0]
            )
        return list(pictures(estimate, self.train, self.query, views=self.views, columns=columns, history=history))


def update_integrated(directory: Path) -> None:
    """Bring the influence over the whole training up to date with the dumps; where that fails, warn and go on."""
    try:
        write_integrated(directory)
    # The dumps are whole, and readers sum them: whatever went wrong here costs nobody a snapshot, or the training.
    except Exception as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        rank_zero_warn(
            f"{directory / INTEGRATED_FILE} was not brought up to date: {why} All dumps are there, and readers sum "
            "them themselves; bif_lightning.write_integrated makes the file later"
        )


def check_unused(directory: Path) -> None:
    """Check that a folder has no dumps, since steps of two runs must not mix.

    Raises:
        MisconfigurationException: it has some.
    """
    dumps = sorted(path.name for path in directory.glob("step=*.h5"))
    if dumps:
        raise MisconfigurationException(
            f"{directory} holds {len(dumps)} dumps of another run ({dumps[0]} ...), and steps of two runs must not "
            "mix; choose another dirpath, resume that run from its checkpoint, or remove the folder"
        )


def _fingerprint(examples: Examples) -> str:
    rows = torch.linspace(0, len(examples) - 1, min(16, len(examples))).long().unique()
    own = getattr(examples.dataset, "_fingerprint", None)
    kind = f"{type(examples.dataset).__name__}[{len(examples)}]"
    found, again = (digest(examples.batch(rows)) for _ in range(2))
    if found != again:  # augmented data differs at every access
        return kind
    return f"{kind} {own}" if isinstance(own, str) else f"{kind} sha256:{found}"
