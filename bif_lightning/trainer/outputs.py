"""Outputs of a snapshot: its dump, and what the loggers get."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.tensorboard import SummaryWriter

from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.archive.write.provenance import provenance
from bif_lightning.data.dataset import Examples, digest
from bif_lightning.data.describe import Describe, describe_samples
from bif_lightning.data.token_texts import Decoder, with_tokens
from bif_lightning.estimation.matrices import Labels
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples
from bif_lightning.storage.atomic import sweep_temporaries
from bif_lightning.tensorboard.summaries import VIEWS, scalars, write_summaries
from bif_lightning.trainer.position import TrainingPosition
from bif_lightning.trainer.problem import Attribution

Precision = Literal["full", "10bit"]


@dataclass
class Outputs:
    """The folder and the loggers of one run, and the description of its examples.

    Construct it inside the guard, since it reads the datasets.

    Attributes:
        directory: of the dumps; None writes nothing (a fast_dev_run).
        tokenizer: decodes token ids to texts.
        precision: of the matrices in the dumps.
        views: of TensorBoard to write; empty where logging is off.
        pairs: (train id, query id) to show as separate curves.
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
        """Class indices of both axes, where both have them."""
        if self.train.labels is None or self.query.labels is None:
            return None
        return Labels(self.train.labels, self.query.labels)

    def open(self) -> None:
        """Make the folder and write the description of the examples.

        Raises:
            ValueError: the folder holds the samples of another run.
            OSError: the folder cannot be written.
        """
        if self.directory is not None:
            write_samples(self.directory, self.train, self.query)
            sweep_temporaries(self.directory)

    def write(self, moment: TrainingPosition, estimate: Estimate) -> Path | None:
        """Write the dump of the snapshot at this position of training."""
        if self.directory is None:
            return None
        return write_dump(
            self.directory,
            estimate,
            step=moment.step,
            epoch=moment.epoch,
            train=self.train,
            query=self.query,
            metrics=moment.metrics,
            hyperparameters=moment.hyperparameters,
            provenance={**provenance(), **self.settings, "loss": self.attribution.loss, "data": self.fingerprints},
            precision=self.precision,
        )

    def log(self, trainer: Any, moment: TrainingPosition, estimate: Estimate) -> None:
        """Log the numbers to every logger, and the views to those that write TensorBoard events."""
        if not self.views:
            return
        for logger in trainer.loggers:
            experiment = getattr(logger, "experiment", None)  # a user's logger need not have one
            if isinstance(experiment, SummaryWriter):
                write_summaries(
                    experiment,
                    estimate,
                    step=moment.step,
                    train=self.train,
                    query=self.query,
                    pairs=self.pairs,
                    views=self.views,
                    introduce=not self.introduced,
                )
            else:
                logger.log_metrics(scalars(estimate, self.train, self.query), step=moment.step)
        self.introduced = True


def check_unused(directory: Path) -> None:
    """Refuse a folder with dumps, since steps of two runs must not mix.

    Raises:
        MisconfigurationException: it holds some.
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
    if found != again:  # augmented: it differs at every access
        return kind
    return f"{kind} {own}" if isinstance(own, str) else f"{kind} sha256:{found}"
