"""The paper's retraining experiment (arXiv 2509.26544, App. B.2): a ResNet-9 on CIFAR-10, where its files are present.

As printed there: Tables 2 and 3, one epoch a retraining and eight for the checkpoint, a warm-up on 2,500 images that
are not used again. Not printed, and so ours: the exact layers (those of `models.ResNet9`), the shape of the learning
rate over time, SGLD's step size, and no augmentation.
"""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from bif_lightning.config import SGLD, Chains
from models import Pairs
from retraining.ekfac import ekfac
from retraining.methods import Method, estimator
from retraining.tasks import Recipe, Task, cross_entropy, stack
from retraining.truth import Truth

# MD5 of the files of the "python version", as their publisher's readers check them.
FILES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Settings:
    """Table 3, Table 2 (row "CIFAR10") and sizes.

    Attributes:
        attribution: examples in the attribution set, the first of a random order; None: all but the warm-up's.
        queries: test images; None for all 10,000.
        learning_rate, weight_decay: as if for 1024 examples and an undamped momentum: `_optimizer` divides.
        bias_scaler: multiplies the learning rate of the batch norms' biases.
    """

    subsets: int = 100
    alpha: float = 0.5
    epochs: int = 1
    reference_epochs: int = 8
    warmup_images: int = 2500
    warmup_steps: int = 100
    batch_size: int = 1024
    learning_rate: float = 10.0
    momentum: float = 0.85
    weight_decay: float = 0.0153
    bias_scaler: float = 64.0
    label_smoothing: float = 0.2
    attribution: int | None = None
    queries: int | None = None
    sampler: SGLD = field(
        default_factory=lambda: SGLD(
            step_size=5e-6, inverse_temperature=200.0, localization=10000.0, gradient="minibatch"
        )
    )
    chains: Chains = field(
        default_factory=lambda: Chains(num_chains=4, num_draws=100, burn_in=0, batch_size=1024, centring="pooled")
    )
    build: Callable[[], nn.Module] = models.ResNet9


def read(folder: Path, digests: Mapping[str, str] = FILES) -> tuple[Pairs, Pairs]:
    """Train and test images, normalized, [3, 32, 32] each, with their labels.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not the published one.
    """
    parts = {name: _read_file(folder / name, digest) for name, digest in digests.items()}
    train = [pair for name, part in parts.items() if name != "test_batch" for pair in part]
    return train, parts["test_batch"]


def _read_file(path: Path, digest: str) -> Pairs:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: --cifar10 takes the folder cifar-10-batches-py of the data set's python version, "
            "which is not downloaded here"
        )
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != digest:
        raise ValueError(f"{path} has the MD5 {found}, the published file {digest}: unpack the archive again")
    entry = pickle.loads(content, encoding="bytes")
    images = torch.from_numpy(np.asarray(entry[b"data"])).view(-1, 3, 32, 32).float() / 255
    images = (images - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
    return list(zip(images, torch.tensor(entry[b"labels"]), strict=True))


def experiment(
    folder: Path, settings: Settings, digests: Mapping[str, str] = FILES, progress: Callable[[str], None] = print
) -> tuple[Task, Truth, list[Method]]:
    """Trains the checkpoint and retrains on the subsets; gives what `lds.table` needs."""
    images, test = read(folder, digests)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    warmup = [images[row] for row in order[: settings.warmup_images]]
    training = [images[row] for row in order[settings.warmup_images :]]
    train, query = training[: settings.attribution], test[: settings.queries]
    unused = Recipe(0, settings.batch_size, settings.learning_rate, settings.weight_decay, "sgd", settings.subsets, 1)
    task = Task("cifar10", settings.build, lambda: (train, query), cross_entropy, unused)

    progress("training the checkpoint")
    reference = fit(settings, training, warmup, settings.reference_epochs, seed=0)
    subsets = torch.zeros(settings.subsets, len(train), dtype=torch.bool)
    losses = torch.zeros(settings.subsets, 1, len(query))
    for row, subset in enumerate(subsets):
        generator = torch.Generator().manual_seed(row + 1)
        subset[torch.rand(len(train), generator=generator) < settings.alpha] = True
        members = [train[i] for i in subset.nonzero().squeeze(1).tolist()]
        losses[row, 0] = _losses(fit(settings, members, warmup, settings.epochs, seed=row + 1), query)
        progress(f"retrained {row + 1} of {settings.subsets}")
    truth = Truth(subsets, losses, reference.state_dict(), str(torch.__version__))
    return task, truth, _methods(settings, training)


def fit(settings: Settings, examples: Pairs, warmup: Pairs, epochs: int, seed: int) -> nn.Module:
    """One model, by Nesterov's SGD on the sum of smoothed losses of a batch; the warm-up leaves only the momentum."""
    torch.manual_seed(seed)
    module = settings.build()
    first = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = _optimizer(module, settings)
    _pass(module, optimizer, _cycled(warmup, settings.warmup_steps, settings.batch_size), settings, peak=False)
    module.load_state_dict(first)
    batches = [batch for _ in range(epochs) for batch in _shuffled(examples, settings.batch_size)]
    _pass(module, optimizer, batches, settings, peak=True)
    return module.eval()


def _optimizer(module: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    scale = 1024 * (1 + 1 / (1 - settings.momentum))
    rate = settings.learning_rate / scale
    decay = settings.weight_decay * settings.batch_size / scale
    norms = [m.bias for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    others = [p for p in module.parameters() if all(p is not bias for bias in norms)]
    biased = rate * settings.bias_scaler
    groups = [
        {"params": norms, "lr": biased, "peak": biased, "weight_decay": decay / biased},
        {"params": others, "lr": rate, "peak": rate, "weight_decay": decay / rate},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], momentum=settings.momentum, nesterov=True)


def _pass(
    module: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Pairs], settings: Settings, peak: bool
) -> None:
    """All batches; the rate climbs from a fifth over the first quarter and falls to 0, or stays at its peak."""
    module.train()
    for step, batch in enumerate(batches):
        done = step / len(batches)
        factor = min(0.2 + 0.8 * done / 0.25, (1 - done) / 0.75) if peak else 1.0
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        inputs, targets = stack(batch)
        optimizer.zero_grad()
        F.cross_entropy(module(inputs), targets, label_smoothing=settings.label_smoothing, reduction="sum").backward()
        optimizer.step()


def _shuffled(examples: Pairs, size: int) -> list[Pairs]:
    order = torch.randperm(len(examples)).tolist()
    return [[examples[row] for row in order[start : start + size]] for start in range(0, len(order), size)]


def _cycled(examples: Pairs, steps: int, size: int) -> list[Pairs]:
    batches = list[Pairs]()
    while len(batches) < steps:
        batches += _shuffled(examples, size)
    return batches[:steps]


def _losses(module: nn.Module, examples: Pairs) -> Tensor:
    with torch.no_grad():
        return torch.cat([models.losses(module, stack(part)) for part in _parts(examples)])


def _parts(examples: Pairs, size: int = 500) -> list[Pairs]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def _methods(settings: Settings, training: Pairs) -> list[Method]:
    sampled = estimator(settings.sampler, settings.chains, training_data=training)
    better = estimator(replace(settings.sampler, gradient="control_variate"), settings.chains, training_data=training)
    return [
        Method("paper: SGLD, pooled", sampled),
        Method("the same with control variates", better),
        Method(
            "EK-FAC (kronfluence)",
            partial(ekfac, fitted_on=training),
            (("default damping 1e-8", 1e-8), ("heuristic damping", 0.0)),
        ),
    ]
