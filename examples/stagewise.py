"""Influence changes sign while a network learns a hierarchy: chains, closed form and retraining say so alike.

A linear network with one hidden layer learns what eight living things have in common, after the toy of "Influence
Dynamics and Stagewise Data Attribution" (arXiv 2510.12071) and of Saxe et al. (2019): first what all share, then animal
or plant, then mammal or bird, tree or flower, and last what sets a dog apart from a cat. While the network learns what
the two share, more weight on the dog lowers the loss of the cat. Once it knows that, and predicts one and the same for
both, more weight on the dog raises it: the sign flips, stage by stage, the more distant relatives first.

Three answers are laid over one another at each snapshot:

- influence by SGLD chains, with a band that holds all steps at once (this package's callback);
- the same in closed form, from the gradients and Hessians of the eight losses (`closed_form`);
- actual retraining: the network trained again from the same start without the dog; how much higher that makes the
  loss of the cat at that step. Retraining sums up what influence says at every step, so it follows with a lag.

    python examples/stagewise.py [--out runs/stagewise] [--seeds 20]
"""

import argparse
import logging
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian
from torch.utils.data import DataLoader, TensorDataset

import bif_lightning as bl

NAMES = ("dog", "cat", "robin", "eagle", "oak", "pine", "rose", "daisy")
STAGES = ("what all share", "animal / plant", "mammal / bird, tree / flower", "dog / cat, ...")
PAIRS = (("dog", "cat"), ("dog", "robin"), ("dog", "oak"))
HIDDEN, START, LEARNING_RATE = 16, 0.02, 0.1
STEPS = list(range(15, 301, 15))

SAMPLER = bl.SGLD(step_size=1e-3, inverse_temperature=100.0, localization=1000.0)
CHAINS = bl.Chains(num_chains=4, num_draws=400, burn_in=20, thinning=1, batch_size=len(NAMES))


def hierarchy() -> TensorDataset:
    """Eight things as one-hot inputs; targets say what all are, which kingdom, which family, and which thing."""
    item = torch.arange(len(NAMES))
    levels = [torch.nn.functional.one_hot(item // size, len(NAMES) // size) for size in (8, 4, 2, 1)]
    return TensorDataset(torch.eye(len(NAMES)), torch.cat(levels, dim=1).float())


def losses(network: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """Half the squared error of each thing, in nat."""
    return 0.5 * (network(batch[0]) - batch[1]).square().sum(1)


class DeepLinear(L.LightningModule):
    """Two linear maps from a small start, trained on all things at every step."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        first, second = start(seed)
        self.first = nn.Linear(*first.T.shape, bias=False)
        self.second = nn.Linear(*second.T.shape, bias=False)
        self.first.weight.data, self.second.weight.data = first, second

    def forward(self, things: Tensor) -> Tensor:
        return self.second(self.first(things))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return losses(self, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def start(seed: int) -> tuple[Tensor, Tensor]:
    """First weights [hidden, things] and second [properties, hidden]."""
    generator = torch.Generator().manual_seed(seed)
    properties = hierarchy().tensors[1].shape[1]
    return (
        START * torch.randn(HIDDEN, len(NAMES), generator=generator),
        START * torch.randn(properties, HIDDEN, generator=generator),
    )


@dataclass(frozen=True)
class Retrained:
    """Training again without each thing in turn, from one start.

    Attributes:
        effect: of thing i on the loss of thing j [step, i, j], in nat: the loss with i in the training set
            less that without it. Negative = i helps j, as for influence.
        strength: how far each singular mode of the targets is learned [step, mode], 1 = wholly.
        weights: first and second weights with all things in the training set, at each step.
    """

    effect: np.ndarray
    strength: np.ndarray
    weights: list[tuple[Tensor, Tensor]]


def retrain(seed: int) -> Retrained:
    """Full-batch gradient descent, nine networks at once: with all things, and without each."""
    things, targets = (values.double() for values in hierarchy().tensors)
    share = torch.cat([torch.ones(1, len(NAMES)), 1 - torch.eye(len(NAMES))]).double() / len(NAMES)
    first, second = (weights.double().expand(len(share), *weights.shape).clone() for weights in start(seed))
    left, singular, right = torch.linalg.svd(targets.T, full_matrices=False)
    effect, strength, kept = [], [], []
    for step in range(max(STEPS) + 1):
        hidden = first @ things.T
        residual = second @ hidden - targets.T  # [network, property, thing]
        if step in STEPS:
            loss = 0.5 * residual.square().sum(1)
            effect.append((loss[0] - loss[1:]).numpy())
            strength.append(((left.T @ second[0] @ first[0] @ right.T).diagonal() / singular).numpy())
            kept.append((first[0].float(), second[0].float()))
        pull = residual * share[:, None, :]
        first, second = (
            first - LEARNING_RATE * second.mT @ pull @ things,
            second - LEARNING_RATE * pull @ hidden.mT,
        )
    return Retrained(np.stack(effect), np.stack(strength), kept)


def closed_form(weights: tuple[Tensor, Tensor]) -> np.ndarray:
    """Influence [i, j] in nat², of the Gaussian that these chains sample around the snapshot.

        −Cov(l_i, l_j) = −g_iᵀΣg_j − ½·tr(H_i Σ H_j Σ),   Σ = (Λ·(I − εΛ/4))⁻¹,   Λ = nβ·H + γ·I

    g and H are gradient and Hessian of single losses, H without index their mean. It is exact for quadratic losses;
    Σ is the stationary law of SGLD with this ε, not the limit of small steps.
    """
    network = DeepLinear(0).double()
    shapes = {name: value.shape for name, value in network.named_parameters()}
    things, targets = (values.double() for values in hierarchy().tensors)

    def loss(flat: Tensor, thing: int) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        parameters = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        predicted = functional_call(network, parameters, things[thing : thing + 1])
        return 0.5 * (predicted - targets[thing : thing + 1]).square().sum()

    at = torch.cat([weights[0].flatten(), weights[1].flatten()]).double()
    slopes = torch.stack([grad(loss)(at, thing) for thing in range(len(NAMES))])
    curvatures = torch.stack([hessian(loss)(at, thing) for thing in range(len(NAMES))])
    unit = torch.eye(len(at), dtype=at.dtype)
    pull = SAMPLER.inverse_temperature * curvatures.mean(0) + SAMPLER.localization * unit
    covariance = torch.linalg.inv(pull @ (unit - SAMPLER.step_size / 4 * pull))
    spread = curvatures @ covariance
    second_order = torch.einsum("iab,jba->ij", spread, spread)
    return -(slopes @ covariance @ slopes.T + second_order / 2).numpy()


def watch(seed: int, out: Path) -> Path:
    """Train with the callback; the folder of its dumps."""
    bif = bl.BIFCallback(
        train=range(len(NAMES)), at_steps=STEPS, at_end=False, sampler=SAMPLER, chains=CHAINS,
        describe=lambda item: {"id": NAMES[int(item[0].argmax())], "text": NAMES[int(item[0].argmax())]},
    )  # fmt: skip
    L.Trainer(
        max_steps=max(STEPS), max_epochs=-1, accelerator="cpu", callbacks=[bif],
        logger=TensorBoardLogger(out, name="", version=f"seed={seed}"),
        enable_model_summary=False, enable_checkpointing=False, enable_progress_bar=False, log_every_n_steps=1,
    ).fit(DeepLinear(seed), DataLoader(hierarchy(), batch_size=len(NAMES)))  # fmt: skip
    assert bif.directory is not None
    return bif.directory


def flips(steps: Sequence[int], values: np.ndarray) -> list[int]:
    """The steps at which a curve has another sign than at the step before."""
    return [steps[k] for k in range(1, len(steps)) if values[k - 1] * values[k] < 0]


def report(run: Any, exact: np.ndarray, runs: Sequence[Retrained]) -> None:
    """Print when each of the three sees the sign of each pair flip."""
    effect = np.stack([each.effect for each in runs])
    print("\nWhere the effect of the first on the loss of the second changes its sign (step)")
    print(f"{'':>12s}{'SGLD, outside its band':>26s}{'closed form':>20s}{'retrained without it':>26s}")
    for one, other in PAIRS:
        i, j = NAMES.index(one), NAMES.index(other)
        found = bl.changes(run, train=one, query=other, by="influence")
        by_chains = [int(step) for step in found[found["kind"] == "flip"]["step"]]
        columns = by_chains, flips(STEPS, exact[:, i, j]), flips(STEPS, effect[0, :, i, j])
        texts = [", ".join(map(str, steps)) or "none" for steps in columns]
        print(f"{one + ' > ' + other:>12s}{texts[0]:>26s}{texts[1]:>20s}{texts[2]:>26s}")
    away = (run.influence.values - exact) / run.influence_standard_error.values
    within = np.mean(np.abs(away) < 1.96)
    print(f"\nOf all {away.size} entries, {within:.0%} lie within 1.96 standard errors of the closed form;")
    print(f"the farthest is {np.abs(away).max():.1f} standard errors away.")


def picture(run: Any, exact: np.ndarray, runs: Sequence[Retrained], path: Path) -> None:
    """The stages above, and below them the three answers for each pair."""
    figure = Figure(figsize=(8.5, 10), layout="constrained")
    axes = figure.subplots(1 + len(PAIRS), 1, sharex=True)
    draw_stages(axes[0], runs[0].strength)
    for axis, pair in zip(axes[1:], PAIRS, strict=True):
        draw_pair(axis, run, exact, runs, pair)
    axes[-1].set_xlabel("training step")
    figure.savefig(path, dpi=150)


def draw_stages(axis: Any, strength: np.ndarray) -> None:
    groups = ((0,), (1,), (2, 3), (4, 5, 6, 7))
    for name, modes, shade in zip(STAGES, groups, ("0.05", "0.3", "0.5", "0.7"), strict=True):
        axis.plot(STEPS, strength[:, list(modes)].mean(1), color=shade, label=name)
    axis.set(ylabel="learned", ylim=(-0.05, 1.3))
    axis.legend(frameon=False, loc="upper center", ncols=len(STAGES), fontsize=8)
    axis.set_title("What the network knows, by stage", loc="left")


def draw_pair(axis: Any, run: Any, exact: np.ndarray, runs: Sequence[Retrained], pair: tuple[str, str]) -> None:
    blue, orange = "#0072b2", "#d55e00"
    i, j = (NAMES.index(name) for name in pair)
    path = bl.trajectory(run, train=pair[0], query=pair[1], by="influence")
    axis.axhline(0, color="0.7", linewidth=0.8)
    axis.fill_between(path["step"], path["band_low"], path["band_high"], color=blue, alpha=0.2, linewidth=0)
    axis.plot(path["step"], path["value"], "o", markersize=3.5, color=blue, label="influence by SGLD, with its band")
    axis.plot(STEPS, exact[:, i, j], color=blue, linewidth=1.2, label="closed form")
    other = axis.twinx()
    effects = np.stack([each.effect[:, i, j] for each in runs])
    starts = np.quantile(effects, [0.05, 0.95], axis=0)
    other.fill_between(STEPS, *starts, color=orange, alpha=0.15, linewidth=0)
    other.plot(STEPS, effects[0], color=orange, linewidth=1.6, label=f"retrained without the {pair[0]}; 90 % of starts")
    for side, values in ((axis, path[["band_low", "band_high"]]), (other, np.vstack([starts, effects[:1]]))):
        limit = 1.08 * float(np.abs(values).max(axis=None))
        side.set_ylim(-limit, limit)  # so that both axes have their zero at one height
    axis.set_ylabel("influence, nat²", color=blue)
    other.set_ylabel("effect on the loss, nat", color=orange)
    axis.set_title(f"{pair[0]} on {pair[1]}: below 0 it helps, above it hurts", loc="left")
    handles = [*axis.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axis.legend(handles, [handle.get_label() for handle in handles], frameon=False, fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/stagewise"), help="folder of the results; made afresh")
    parser.add_argument("--seeds", type=int, default=20, help="starts of the retraining; the chains run for the first")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if arguments.seeds < 1:
        parser.error(f"--seeds is {arguments.seeds}; it must be 1 or more")
    if out.exists() and not list(out.glob("seed=*/bif")):
        parser.error(f"{out} is there and was not made by this example; give another --out")
    shutil.rmtree(out, ignore_errors=True)
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    started = time.perf_counter()
    directory = watch(0, out)
    runs = [retrain(seed) for seed in range(arguments.seeds)]
    exact = np.stack([closed_form(weights) for weights in runs[0].weights])
    run = bl.open_run(directory)
    report(run, exact, runs)
    picture(run, exact, runs, out / "stagewise.png")
    print(f"\nIn all {time.perf_counter() - started:.0f} s. Picture: {out / 'stagewise.png'}; dumps: {directory}")


if __name__ == "__main__":
    main()
