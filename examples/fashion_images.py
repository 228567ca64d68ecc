"""Show the training images that help and hurt a prediction most, beside those that a classical method names.

A small convolutional network learns Fashion-MNIST (Debian's package dataset-fashion-mnist, or --data FOLDER with the
four files). For the test image of each class that it gets wrong most, the picture has the training images that help and
hurt most: on the left by influence over the whole training (this package), on the right by the product of the gradients
at its end, which is what TracIn does with one checkpoint.

    python examples/fashion_images.py [--out runs/fashion_images] [--data /usr/share/datasets/fashion-mnist]
"""

import argparse
import gzip
import logging
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, Dataset

import bif_lightning as bl

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
QUERIES = 100
SHOWN = ["pullover", "coat", "shirt", "dress", "sneaker", "boot"]
EACH = 5  # that help, and that hurt
SEED = 0


class FashionMNIST(Dataset[tuple[Tensor, int]]):
    """The first images of a split, as torchvision has them: [1, 28, 28] between 0 and 1, and the class."""

    classes = CLASSES

    def __init__(self, folder: Path, split: str, count: int) -> None:
        pixels = _values(folder / f"{split}-images-idx3-ubyte.gz", 16, count * 784).reshape(-1, 1, 28, 28)
        self.images = torch.from_numpy(pixels).float() / 255
        self.labels = torch.from_numpy(_values(folder / f"{split}-labels-idx1-ubyte.gz", 8, count)).long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def _values(path: Path, header: int, count: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(header + count), np.uint8, offset=header).copy()


class ImageClassifier(L.LightningModule):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 49, 10),
        )  # fmt: skip

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def train(train_set: FashionMNIST, test_set: FashionMNIST, epochs: int, out: Path) -> tuple[nn.Module, Any]:
    """The trained network, and the run of the dumps that the callback wrote meanwhile."""
    L.seed_everything(SEED, verbose=False)
    module, bif = ImageClassifier(), bl.BIFCallback(train=train_set, query=test_set)
    L.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[bif], logger=TensorBoardLogger(out, name="", version="run"),
        enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=10,
    ).fit(module, DataLoader(train_set, batch_size=50, shuffle=True))  # fmt: skip
    assert bif.directory is not None
    return module.net, bl.open_run(bif.directory)


def gradient_products(net: nn.Module, train_set: FashionMNIST, test_set: FashionMNIST) -> np.ndarray:
    """Products of the loss gradients of each train image with each test image; positive where the former helps."""
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, weights, image[None]), label[None])

    def gradients(data: FashionMNIST) -> Tensor:
        each = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=100)(weights, data.images, data.labels)
        return torch.cat([part.flatten(1) for part in each.values()], dim=1)

    return (gradients(train_set) @ gradients(test_set).T).numpy()


@dataclass(frozen=True)
class Named:
    """Rows of the training images that a method names for one query, the strongest first."""

    helps: list[int]
    hurts: list[int]


def by_influence(run: Any, query: int) -> Named:
    table = bl.top(run, query, k=EACH)
    helps = table.effect == "helps"
    return Named(table.train[helps].tolist(), table.train[~helps].tolist())


def by_products(products: np.ndarray, query: int) -> Named:
    order = np.argsort(-products[:, query], kind="stable")
    return Named(order[:EACH].tolist(), order[: -EACH - 1 : -1].tolist())


def hardest(net: nn.Module, test_set: FashionMNIST) -> list[int]:
    """Of each class shown, the test image with the largest loss."""
    with torch.no_grad():
        loss = F.cross_entropy(net(test_set.images), test_set.labels, reduction="none")
    rows = [torch.where(test_set.labels == CLASSES.index(name))[0] for name in SHOWN]
    return [int(of_class[loss[of_class].argmax()]) for of_class in rows if len(of_class)]


def report(named: dict[str, list[Named]], queries: list[int], train_set: FashionMNIST, test_set: FashionMNIST) -> None:
    """Print which classes each method names, and how many different images."""
    for method, all_named in named.items():
        helps = [row for each in all_named for row in each.helps]
        hurts = [row for each in all_named for row in each.hurts]
        own = [test_set.labels[query] for query in queries for _ in range(EACH)]
        same = np.mean([train_set.labels[row] == label for row, label in zip(helps, own, strict=False)])
        print(
            f"{method:>20s}: {same:4.0%} of those that help are of the query's class; {len(set(helps))} different "
            f"images help and {len(set(hurts))} hurt {len(queries)} queries"
        )


def picture(
    named: dict[str, list[Named]], queries: list[int], train_set: FashionMNIST, test_set: FashionMNIST, net: nn.Module
) -> Figure:
    """A row for each query: itself, then what helps and hurts it by each method."""
    with torch.no_grad():
        predicted = net(test_set.images).argmax(1)
    groups = [(f"{kind}, by {method}", kind, method) for method in named for kind in ("helps", "hurts")]
    widths = [1.6] + ([0.4] + [1.0] * EACH) * len(groups)
    figure = Figure(figsize=(sum(widths) * 0.62, len(queries) * 0.95 + 0.6))
    grid = figure.add_gridspec(
        len(queries), len(widths), width_ratios=widths, left=0.01, right=0.99, top=0.9, bottom=0.03, hspace=0.35,
        wspace=0.05,
    )  # fmt: skip
    for place, query in enumerate(queries):
        label = int(test_set.labels[query])
        said = f"{CLASSES[label]}\ntaken for {CLASSES[int(predicted[query])]}"
        _show(figure.add_subplot(grid[place, 0]), test_set.images[query], said, "black")
        for number, (_, kind, method) in enumerate(groups):
            for column, row in enumerate(getattr(named[method][place], kind)):
                axes = figure.add_subplot(grid[place, 2 + number * (EACH + 1) + column])
                other = int(train_set.labels[row])
                _show(axes, train_set.images[row], CLASSES[other], "black" if other == label else "#b3261e")
    for number, (title, _, _) in enumerate(groups):
        left = grid[0, 2 + number * (EACH + 1)].get_position(figure).x0
        figure.text(left, 0.96, title, fontsize=9, weight="bold")
    figure.text(0.01, 0.96, "test image", fontsize=9, weight="bold")
    return figure


def _show(axes: Any, image: Tensor, words: str, colour: str) -> None:
    axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
    axes.set_axis_off()
    axes.set_title(words, fontsize=6, color=colour, pad=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fashion_images"), help="folder of the results")
    parser.add_argument("--data", type=Path, default=DEBIAN, help="folder of the four files of Fashion-MNIST")
    parser.add_argument("--train", type=int, default=1000, help="training images")
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    out: Path = arguments.out
    if not (arguments.data / "train-images-idx3-ubyte.gz").exists():
        parser.error(f"{arguments.data} has no Fashion-MNIST: apt-get install dataset-fashion-mnist, or --data FOLDER")
    if out.exists() and not (out / "run" / "bif").is_dir():
        parser.error(f"{out} is there and was not made by this example; give another --out")
    shutil.rmtree(out, ignore_errors=True)
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    started = time.perf_counter()
    train_set = FashionMNIST(arguments.data, "train", arguments.train)
    test_set = FashionMNIST(arguments.data, "t10k", QUERIES)
    net, run = train(train_set, test_set, arguments.epochs, out)
    queries, products = hardest(net, test_set), gradient_products(net, train_set, test_set)
    named = {
        "influence": [by_influence(run, query) for query in queries],
        "gradient product": [by_products(products, query) for query in queries],
    }
    report(named, queries, train_set, test_set)
    picture(named, queries, train_set, test_set, net).savefig(out / "fashion_images.png", dpi=150)
    print(
        f"In all {time.perf_counter() - started:.0f} s. Picture: {out / 'fashion_images.png'}; dumps: {run.directory}"
    )


if __name__ == "__main__":
    main()
