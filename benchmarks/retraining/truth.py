"""The ground truth: query losses after retraining on random halves, made once and kept.

python benchmarks/retraining/truth.py --task digits_mlp          # into the cache
python benchmarks/retraining/truth.py --task digits_mlp --commit # and the small copy beside this file
"""

import argparse
import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from retraining.tasks import TASKS, Task, stack
from retraining.training import query_losses, train

COMMITTED = Path(__file__).resolve().parent / "truth"


class StaleTruthError(ValueError):
    """The stored truth is of another recipe, model or data."""


@dataclass(frozen=True)
class Truth:
    """What retraining did.

    Attributes:
        subsets: which train examples each subset holds, bool [S, n].
        losses: loss of every query after every retraining (summed over tokens), float32 [S, seeds, q].
        weights: parameters of the reference checkpoint, trained on all examples, by name.
        torch_version: of the retraining.
    """

    subsets: Tensor
    losses: Tensor
    weights: dict[str, Tensor]
    torch_version: str

    def reference(self, task: Task) -> nn.Module:
        """The reference checkpoint, in evaluation mode."""
        module = task.build()
        module.load_state_dict(self.weights)
        return module.eval()


def load(task: Task, cache: Path | None = None) -> Truth:
    """The truth of a task: from the cache, else the small copy in the repository.

    Raises:
        StaleTruthError: it was made by another recipe, from other data or with another model.
        FileNotFoundError: there is none.
    """
    for folder in (cache or cache_folder(), COMMITTED):
        path = folder / f"{task.name}.npz"
        if path.exists():
            return _read(path, task)
    raise FileNotFoundError(
        f"no retrained losses of {task.name!r}: run benchmarks/retraining/truth.py --task {task.name}"
    )


def make(task: Task) -> Truth:
    """Trains the reference and retrains on every subset with every seed; minutes. Progress goes to standard error."""
    count, recipe = len(task.data()[0]), task.recipe
    reference = train(task, torch.ones(1, count, dtype=torch.bool), [0])
    subsets = halves(count, recipe.subsets)
    seeds = list(range(1, 1 + recipe.subsets * recipe.seeds))
    started = time.monotonic()

    def progress(done: int) -> None:
        print(f"\r{task.name}: {done}/{len(seeds)} models, {time.monotonic() - started:.0f} s", end="", file=sys.stderr)

    retrained = train(task, subsets.repeat_interleave(recipe.seeds, 0), seeds, progress)
    print(file=sys.stderr)
    losses = query_losses(task, retrained).view(recipe.subsets, recipe.seeds, -1)
    return Truth(subsets, losses, {name: value[0] for name, value in reference.items()}, str(torch.__version__))


def halves(count: int, subsets: int) -> Tensor:
    """Random subsets of half the examples, bool [subsets, count]."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.zeros(subsets, count, dtype=torch.bool)
    for row in chosen:
        row[torch.randperm(count, generator=generator)[: count // 2]] = True
    return chosen


def checksum(task: Task) -> str:
    """SHA-256 of everything the truth follows from: recipe, data and the untrained model, but not torch's version."""
    digest = hashlib.sha256(json.dumps(asdict(task.recipe), sort_keys=True).encode())
    for part in task.data():
        for column in stack(part):
            digest.update(column.numpy().tobytes())
    digest.update(str(task.build()).encode())
    return digest.hexdigest()


def save(truth: Truth, task: Task, folder: Path, dtype: type[np.floating]) -> Path:
    """Writes `<task>.npz`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task.name}.npz"
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(
        partial,
        checksum=np.array(checksum(task)),
        torch_version=np.array(truth.torch_version),
        subsets=np.packbits(truth.subsets.numpy(), axis=1),
        losses=truth.losses.numpy().astype(dtype),
        **{f"weights/{name}": value.numpy() for name, value in truth.weights.items()},
    )
    os.replace(partial, path)
    return path


def cache_folder() -> Path:
    """$BIF_CACHE, else a folder of the user's cache."""
    return Path(os.environ.get("BIF_CACHE", "~/.cache/bif_lightning/retraining")).expanduser()


def _read(path: Path, task: Task) -> Truth:
    with np.load(path) as stored:
        if str(stored["checksum"]) != checksum(task):
            raise StaleTruthError(
                f"{path} is not of task {task.name!r} as it stands here: its recipe, model or data (which may be "
                f"text of this machine) are others. Run retraining/truth.py --task {task.name}"
            )
        count = len(task.data()[0])
        return Truth(
            torch.from_numpy(np.unpackbits(stored["subsets"], axis=1, count=count)).bool(),
            torch.from_numpy(stored["losses"].astype(np.float32)),
            {name.removeprefix("weights/"): torch.from_numpy(stored[name]) for name in stored.files if "/" in name},
            str(stored["torch_version"]),
        )


def main() -> None:
    """Makes the truth of the chosen tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=sorted(TASKS), help="default: all")
    parser.add_argument("--cache", type=Path, help="folder of the full arrays; default $BIF_CACHE or the user's cache")
    parser.add_argument("--commit", action="store_true", help="also write the small copy into this repository")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.task or sorted(TASKS):
        truth = make(TASKS[name])
        print(save(truth, TASKS[name], options.cache or cache_folder(), np.float32))
        if options.commit:
            print(save(truth, TASKS[name], COMMITTED, np.float16))


if __name__ == "__main__":
    main()
