"""Find wrong labels while a network trains, then show that leaving the most harmful examples out helps.

A small network learns handwritten digits of which every tenth has a wrong label. At each snapshot, these rankings look
for the wrong ones: influence on held-out queries, at the snapshot and over the training so far (this package), EK-FAC
self-influence (where kronfluence is installed), the training loss, and the area under the margin. Then the 5 % that
hurt the queries most are left out, and the network is trained anew with several seeds; what counts is the loss on a
third set that nothing above has seen.

    python examples/clean_labels.py [--out runs/clean_labels] [--seeds 8]
"""

import argparse
import logging
import shutil
import tempfile
import time
import warnings
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bif_lightning as bl

TRAIN, QUERIES = 1000, 300  # the rest, 497 digits, is for the test
WRONG, REMOVED = 0.10, 0.05
EPOCHS, BATCH = 20, 50
STEPS = [20, 60, 120, 200, 400]


def network() -> nn.Module:
    """Two convolutions and a linear layer on 8 x 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 10),
    )  # fmt: skip


class DigitsNet(L.LightningModule):
    """Plain classification."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class Watch(L.Callback):
    """Keeps what the other rankings need: the margin of every example at each epoch's end, the weights at `STEPS`."""

    def __init__(self, train: TensorDataset) -> None:
        self.train = train
        self.margins: list[tuple[int, np.ndarray]] = []
        self.weights: dict[int, nn.Module] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step in STEPS:
            self.weights[step] = deepcopy(pl_module.net)
        if step % (TRAIN // BATCH) == 0:
            images, labels = self.train.tensors
            with torch.no_grad():
                logits = pl_module.net(images)
            own = logits.gather(1, labels[:, None])[:, 0]
            other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
            self.margins.append((step, (own - other).numpy()))

    def area_under_margin(self, step: int) -> np.ndarray:
        """Mean margin over the epochs so far (Pleiss et al. 2020): low = suspect."""
        return np.mean([margin for at, margin in self.margins if at <= step], axis=0)


def data() -> tuple[TensorDataset, TensorDataset, TensorDataset, np.ndarray]:
    """Training set with wrong labels, queries and test set without, and which labels are wrong."""
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    images = torch.from_numpy(pixels[order]).float().view(-1, 1, 8, 8) / 16
    true = torch.from_numpy(labels[order])
    wrong = np.zeros(TRAIN, bool)
    wrong[rng.choice(TRAIN, int(WRONG * TRAIN), replace=False)] = True
    given = true.clone()
    given[:TRAIN][wrong] = (true[:TRAIN][wrong] + torch.from_numpy(rng.integers(1, 10, wrong.sum()))) % 10
    ends = [0, TRAIN, TRAIN + QUERIES, len(true)]
    sets = [TensorDataset(images[a:b], given[a:b]) for a, b in pairwise(ends)]
    return sets[0], sets[1], sets[2], wrong


def train(train_set: TensorDataset, queries: TensorDataset, out: Path) -> tuple[Path, Watch]:
    """Train once with the callback; the folder of the dumps, and what was watched beside."""
    L.seed_everything(0, verbose=False)
    watch = Watch(train_set)
    bif = bl.BIFCallback(train=train_set, query=queries, at_steps=STEPS, at_end=False)
    L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=[watch, bif],
        logger=TensorBoardLogger(out, name="", version=""),
        enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=20,
    ).fit(DigitsNet(), DataLoader(train_set, batch_size=BATCH, shuffle=True))  # fmt: skip
    assert bif.directory is not None
    return bif.directory, watch


def rankings(run: Any, step: int, watch: Watch, train_set: TensorDataset) -> dict[str, np.ndarray]:
    """How suspect each example is by each method, larger = more."""
    now, so_far = run.sel(step=step), bl.integrated(run, before=step + 1)
    images, labels = train_set.tensors
    with torch.no_grad():
        loss = F.cross_entropy(watch.weights[step](images), labels, reduction="none").numpy()
    found = {
        # Influence of an example on the mean loss of the queries: positive = it hurts them.
        "influence": now.influence.values.mean(axis=1),
        "influence over training": so_far.integrated.values.mean(axis=1),
        "correlation": -now.correlation.values.mean(axis=1),
        "loss": loss,
        "area under margin": -watch.area_under_margin(step),
    }
    self_influence = ekfac_self_influence(watch.weights[step], train_set)
    return found if self_influence is None else found | {"EK-FAC self-influence": self_influence}


def ekfac_self_influence(net: nn.Module, train_set: TensorDataset) -> np.ndarray | None:
    """Influence of each example on its own loss, by kronfluence; None where it is not installed."""
    try:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments
        from kronfluence.task import Task
    except ImportError:
        return None

    class Classification(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            logits, labels = model(batch[0]), batch[1]
            if sample:
                labels = torch.distributions.Categorical(logits=logits.detach()).sample()
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    with tempfile.TemporaryDirectory() as folder:
        task = Classification()
        analyzer = Analyzer(
            "clean_labels", prepare_model(deepcopy(net), task), task, cpu=True, output_dir=folder,
            disable_model_save=True, disable_tqdm=True,
        )  # fmt: skip
        analyzer.fit_all_factors("factors", train_set, 256, factor_args=FactorArguments("ekfac"))
        analyzer.compute_self_scores("self", "factors", train_set, 256)
        return analyzer.load_self_scores("self")["all_modules"].float().numpy()


def report(run: Any, watch: Watch, train_set: TensorDataset, wrong: np.ndarray) -> dict[str, list[tuple[float, float]]]:
    """Print and return AUROC, and precision among as many as are wrong, of each method at each snapshot."""
    found: dict[str, list[tuple[float, float]]] = {}
    for step in STEPS:
        for name, suspect in rankings(run, step, watch, train_set).items():
            first = np.argsort(-suspect)[: wrong.sum()]
            found.setdefault(name, []).append((float(roc_auc_score(wrong, suspect)), float(wrong[first].mean())))
    count = wrong.sum()
    print(f"\nWho finds the {count} wrong labels among {len(wrong)}? AUROC / precision among the first {count}")
    print(f"{'step':>24s}" + "".join(f"{step:>14d}" for step in STEPS))
    for name, scores in found.items():
        print(f"{name:>24s}" + "".join(f"{f'{auroc:.3f} / {precision:.2f}':>14s}" for auroc, precision in scores))
    print(f"{'verdict':>24s}" + "".join(f"{word:>14s}" for word in run.verdict.values.tolist()))
    if "EK-FAC self-influence" not in found:
        print("EK-FAC is left out: pip install kronfluence")
    return found


def retrained_loss(train_set: TensorDataset, rows: np.ndarray, test: TensorDataset, seed: int) -> float:
    """Test loss of a network trained on these rows alone, as many steps as the first one made."""
    torch.manual_seed(seed)
    net, images, labels = network(), *train_set.tensors
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(EPOCHS * TRAIN // BATCH):
        chosen = torch.from_numpy(rows)[torch.randperm(len(rows))[:BATCH]]
        optimizer.zero_grad()
        F.cross_entropy(net(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        return float(F.cross_entropy(net(test.tensors[0]), test.tensors[1]))


def removal(
    run: Any, watch: Watch, train_set: TensorDataset, test: TensorDataset, seeds: int
) -> dict[str, tuple[float, float, float]]:
    """Test loss after removing 5 %, its standard error, and that of the paired difference from removing nothing."""
    step, count = STEPS[-1], int(REMOVED * TRAIN)
    ranked = rankings(run, step, watch, train_set)
    ranked = {"influence, helps": -ranked["influence"], **ranked}
    every, losses = np.arange(TRAIN), dict[str, list[float]]()
    for seed in range(seeds):
        kept = {"nothing": every, "random": np.random.default_rng(seed).permutation(TRAIN)[count:]}
        kept |= {name: np.argsort(-suspect)[count:] for name, suspect in ranked.items()}
        for name, rows in kept.items():
            losses.setdefault(name, []).append(retrained_loss(train_set, rows, test, seed))
    base = np.array(losses["nothing"])
    print(f"\nTest loss after training without 5 %, chosen at step {step}; {seeds} seeds, ± standard error")
    table: dict[str, tuple[float, float, float]] = {}
    for name, values in losses.items():
        value, change = np.array(values), np.array(values) - base
        table[name] = (value.mean(), _error(value), _error(change))
        errors = _error(value), _error(change)
        print(f"{name:>24s}  {value.mean():.4f} ± {errors[0]:.4f}   change {change.mean():+.4f} ± {errors[1]:.4f}")
    print('"influence, helps" leaves out those that help most: it should do harm.')
    return table


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def picture(
    found: dict[str, list[tuple[float, float]]], table: dict[str, tuple[float, float, float]], path: Path
) -> None:
    """Both results side by side."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {
        "influence": "#2c6fbb",
        "influence over training": "#123e70",
        "correlation": "#7fb0e0",
        "loss": "#888888",
        "area under margin": "#3f9b5f",
    }
    colours |= {"EK-FAC self-influence": "#d9722a"}
    for name, scores in found.items():
        left.plot(STEPS, [auroc for auroc, _ in scores], marker="o", label=name, color=colours[name])
    left.set(xlabel="training step", ylabel="AUROC of the wrong labels", xscale="log")
    left.set_xticks(STEPS, [str(step) for step in STEPS])
    left.minorticks_off()
    left.legend(frameon=False)
    left.set_title("Wrong labels found", loc="left")
    names = list(table)
    places = np.arange(len(names))
    right.barh(
        places, [table[name][0] for name in names], xerr=[1.96 * table[name][1] for name in names],
        color=[colours.get(name, "#c9c9c9") for name in names], error_kw={"capsize": 3, "elinewidth": 1},
    )  # fmt: skip
    right.axvline(table["nothing"][0], color="0.4", linewidth=0.8, linestyle="--")
    right.set_yticks(places, names)
    right.invert_yaxis()
    right.set_xlabel("test loss, nat (95 % interval over seeds)")
    right.set_title("Trained anew without 5 %, chosen by ...", loc="left")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/clean_labels"), help="folder of the results; made afresh"
    )
    parser.add_argument("--seeds", type=int, default=8, help="retrainings of each kind")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if arguments.seeds < 2:
        parser.error(f"--seeds is {arguments.seeds}; a standard error needs at least 2")
    if out.exists() and not (out / "bif").is_dir():
        parser.error(f"{out} is there and was not made by this example; give another --out")
    shutil.rmtree(out, ignore_errors=True)
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|GradScaler).*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    started = time.perf_counter()
    train_set, queries, test, wrong = data()
    directory, watch = train(train_set, queries, out)
    run = bl.open_run(directory)
    found = report(run, watch, train_set, wrong)
    table = removal(run, watch, train_set, test, arguments.seeds)
    picture(found, table, out / "clean_labels.png")
    print(f"\nIn all {time.perf_counter() - started:.0f} s. Picture: {out / 'clean_labels.png'}; dumps: {directory}")


if __name__ == "__main__":
    main()
