"""Watch influence evolve while a small convolutional network learns real handwritten digits.

5 % of the training labels are wrong on purpose. At each snapshot, the influence of a training example on the losses
of the held-out queries says whether it helps or hurts them; the wrong labels should stand out as those that hurt.

    python examples/digits.py [--out runs/digits]
"""

import argparse
import io
import time
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, Image, Value
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image as Picture
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

import bif_lightning as bl

QUERIES = 200
FLIPPED = 0.05
STEPS = [2, 5, 12, 30, 70, 160, 345]


class DigitsNet(L.LightningModule):
    """Two convolutions and a linear layer on 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * 16, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch["image"]), batch["label"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self.net(batch["image"])
        self.accuracy(logits, batch["label"])
        self.log("val_loss", F.cross_entropy(logits, batch["label"]))
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def digits(seed: int = 0) -> tuple[Dataset, Dataset, np.ndarray]:
    """Training set with some labels flipped, held-out set, and which labels were flipped."""
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    train, held_out = order[:-QUERIES], order[-QUERIES:]
    flipped = rng.random(len(train)) < FLIPPED
    given = labels.copy()
    given[train[flipped]] = (labels[train[flipped]] + rng.integers(1, 10, flipped.sum())) % 10
    return _dataset(pixels, given, labels, train), _dataset(pixels, given, labels, held_out), flipped


def _dataset(pixels: np.ndarray, given: np.ndarray, true: np.ndarray, rows: np.ndarray) -> Dataset:
    columns = {
        "id": [f"digit {row}" for row in rows],
        "image": [{"bytes": _png(pixels[row]), "path": None} for row in rows],
        "label": given[rows].tolist(),
        "text": [f"a {true[row]}, labelled {given[row]}" if true[row] != given[row] else "" for row in rows],
    }
    names = [str(digit) for digit in range(10)]
    features = {"id": Value("string"), "image": Image(), "label": ClassLabel(names=names), "text": Value("string")}
    return Dataset.from_dict(columns, features=Features(features)).with_transform(_tensors)


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Picture.fromarray((pixels.reshape(8, 8) * 15).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def _tensors(batch: dict[str, list]) -> dict[str, list]:
    images = [torch.from_numpy(np.array(image, dtype=np.float32))[None] / 240 for image in batch["image"]]
    return {"image": images, "label": batch["label"]}


def train(out: Path, steps: list[int]) -> Path:
    """Train with the callback; returns the folder of the dumps."""
    L.seed_everything(0)
    train_set, held_out, _ = digits()
    bif = bl.BIFCallback(
        train=train_set,
        query=held_out,
        at_steps=steps,
        sampler=bl.SGLD(step_size=4e-6, inverse_temperature=1e4, localization=1e4),
        chains=bl.Chains(num_chains=4, num_draws=50, thinning=4, batch_size=64),
        observables=[
            bl.MetricValue(
                "accuracy", MulticlassAccuracy(10, average="micro"), lambda m, b: (m.net(b["image"]), b["label"])
            )
        ],
    )
    trainer = L.Trainer(
        max_steps=steps[-1], callbacks=[bif], logger=TensorBoardLogger(out, name="", version="run"),
        accelerator="cpu", enable_model_summary=False, log_every_n_steps=5,
    )  # fmt: skip
    trainer.fit(
        DigitsNet(), DataLoader(train_set, batch_size=64, shuffle=True), DataLoader(held_out, batch_size=QUERIES)
    )
    assert bif.directory is not None
    return bif.directory


def harm(correlation: np.ndarray) -> np.ndarray:
    """How much each training example hurts the held-out set: minus its mean correlation with the query losses."""
    return -correlation.mean(axis=1)


def report(directory: Path, out: Path) -> None:
    """Print what the dumps say, and draw it."""
    _, _, flipped = digits()
    run = bl.open_run(directory)
    print(f"\nHow well does influence find the {flipped.sum()} wrong labels among {len(flipped)}, at each snapshot?")
    print("  step  AUROC  wrong among the 50 most harmful    LLC ± s.e.      R-hat   ESS  seconds")
    found = []
    for step in run.step.values:
        now = run.sel(step=step)
        harmful = harm(now.correlation.values)
        found.append(roc_auc_score(flipped, harmful))
        first = flipped[np.argsort(-harmful)[:50]].sum()
        print(
            f"{step:6d}   {found[-1]:.2f}  {first:30d}    {float(now.llc):6.1f} ± {float(now.llc_standard_error):4.1f}  "
            f"{float(now.rhat):7.2f}  {float(now.ess):4.0f}  {float(now.seconds):7.1f}"
        )
    print(f"  (chance: AUROC 0.50, {50 * flipped.mean():.1f} of 50)")
    last = run.sel(step=run.step.values[-1])
    for query in hardest_queries(last.query_loss.values):
        print(f"\nQuery {str(last.query_id.values[query])!r}, a {int(last.query_label[query])}, at step {int(last.step)}: "
              "influence on its loss, nat² (negative helps)")  # fmt: skip
        table = bl.top(run, query=int(query), k=3)
        print(table[["effect", "id", "label", "text", "value", "standard_error"]].to_string(index=False))
    draw(run, np.array(found), directory, out)


def hardest_queries(losses: np.ndarray, count: int = 3) -> np.ndarray:
    """The queries that the model likes least: somebody would ask why."""
    return np.argsort(-losses)[:count]


def draw(run, auroc: np.ndarray, directory: Path, out: Path) -> None:
    """Three pictures beside the dumps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder for logs and dumps")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    started = time.perf_counter()
    directory = train(args.out, STEPS)
    report(directory, args.out)
    print(f"\nAll in {time.perf_counter() - started:.0f} s. Dumps: {directory}")
    print(f"Watch it: tensorboard --logdir {args.out} --samples_per_plugin images=1000")


if __name__ == "__main__":
    main()
