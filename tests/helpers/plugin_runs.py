"""Small runs on disk for the tests of the Influence tab, written by the archive's own writer."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from archive_examples import make_columns, make_estimate, make_influence, make_label_means
from bif_lightning.archive.write import write_dump, write_samples
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.examples import Samples
from bif_lightning.tensorboard.plugin.answers import Answer
from bif_lightning.tensorboard.plugin.dispatch import read
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles
from bif_lightning.tensorboard.plugin.scan import Scan

STEPS = (100, 200, 300, 400)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def samples_of(side: str, size: int, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    return Samples(
        ids=tuple(f"{side}-{row}" for row in range(size)),
        index=np.arange(size),
        labels=rng.integers(-1, 3, size),
        label_names=("cat", "dog", "ünit"),
        texts=tuple(f"{'=1+1 ' if row == 0 else ''}text of {side} {row} " + "long " * 30 for row in range(size)),
        thumbnails=tuple(b"" if row == 1 else PNG for row in range(size)),
        columns=make_columns(size),
    )


def estimate_of(train: Samples, query: Samples, seed: int) -> Estimate:
    rng = np.random.default_rng(seed)
    n, q = len(train), len(query)
    observables = (make_influence(rng, n, 2, name="margin", unit="1", columns=("one", "two")),)
    means = make_label_means(rng, train, query)
    estimate = make_estimate(
        rng,
        n,
        q,
        chain_ids=(0, 2),
        draws=6,
        observables=observables,
        label_means=means,
        conditioned=True,
        diverged=(1,),
    )
    return replace(estimate, top_stability=np.where(np.arange(q) < q - 1, 0.75, np.nan))


def write_run(folder: Path, n: int = 40, q: int = 12, steps: Sequence[int] = STEPS) -> dict[int, Estimate]:
    """A run with labels, texts, pictures, columns, an observable and label means; its estimates by step."""
    train, query = samples_of("train", n), samples_of("query", q, seed=1)
    write_samples(folder, train, query)
    made = {step: estimate_of(train, query, seed) for seed, step in enumerate(steps)}
    for epoch, (step, estimate) in enumerate(made.items()):
        metrics = {"val_loss": 1.0 / (epoch + 1)}
        write_dump(folder, estimate, step=step, epoch=epoch, train=train, query=query, metrics=metrics)
    return made


def files_of(folder: Path) -> RunFiles:
    """The only run in a folder, as a scan finds it."""
    (run,) = Scan(folder).runs().values()
    return run.files()


def ask(files: RunFiles, name: str, there: RunFiles | None = None, **parameters: object) -> Answer:
    """The answer to a question, in this process."""
    return read(name, files, there, Parameters({key: str(value) for key, value in parameters.items()}))


def told(files: RunFiles, name: str, there: RunFiles | None = None, **parameters: object) -> Any:
    """The JSON of an answer that must be given."""
    answer = ask(files, name, there, **parameters)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def refused(files: RunFiles, name: str, there: RunFiles | None = None, **parameters: object) -> tuple[int, str]:
    """Status and sentence of an answer that must be refused."""
    answer = ask(files, name, there, **parameters)
    assert answer.status != 200
    return answer.status, json.loads(answer.body)["error"]
