"""A snapshot of a ResNet-18 by the default sampler: forecast, time and memory, on images of Fashion-MNIST.

    python benchmarks/any_size.py                       # 11 M weights, 1,000 train and 100 query images of 32 x 32
    python benchmarks/any_size.py --train 50 --query 10 --width 16

The gradients of so many examples take far more memory than they may, so that sketches of them are kept. Memory is the
peak beyond what the process held before the snapshot (Linux only), with the network, the images, and one training step
at the batch size of the chains.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from bif_lightning.data.dataset import Examples
from bif_lightning.estimation.estimator import estimate_problem
from bif_lightning.estimation.forecast import forecast
from bif_lightning.losses.problem import Problem
from bif_lightning.sampling.choice import default_settings, sampler_of


class ResNet18(nn.Module):
    """The residual network of He et al. (2016) for images of 32 x 32, with BatchNorm and ReLU."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = _normed(1, width, 3, 1)
        self.blocks = nn.Sequential(
            *(
                Block(widths[stage] if first else widths[stage + 1], widths[stage + 1], 2 if first and stage else 1)
                for stage in range(4)
                for first in (True, False)
            )
        )
        self.head = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(images))).mean((2, 3)))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _normed(inputs, outputs, 3, stride), _normed(outputs, outputs, 3, 1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _normed(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def _normed(inputs: int, outputs: int, size: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)
    )  # fmt: skip


def images(count: int) -> list[tuple[Tensor, Tensor]]:
    """Images of Fashion-MNIST, padded to [1, 32, 32]."""
    return [(F.pad(pixels.view(1, 28, 28), (2, 2, 2, 2)), label) for pixels, label in models.fashion_mnist(count)]


def peak() -> float:
    """Largest memory of this process so far, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--query", type=int, default=100)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage; 64 in ResNet-18")
    parser.add_argument("--steps", type=int, default=60, help="of training, before the snapshot")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    net, data = ResNet18(given.width), images(given.train + given.query)
    models.fit(net, data[: given.train], given.steps, batch_size=64)
    train = Examples(data[: given.train])
    problem = Problem(
        module=net, loss=models.losses, objective=models.mean_loss, train=train,
        query=Examples(data[given.train :]), training=train, prepare=lambda batch: batch,
    )  # fmt: skip
    settings = default_settings(problem)
    assert settings != "auto"
    chains = sampler_of(settings).chains()
    models.fit(net, data[: given.train], 1, batch_size=chains.batch_size)
    expected, before = forecast(problem, settings, chains), peak()
    started, cpu = time.perf_counter(), time.process_time()
    found = estimate_problem(problem, settings, chains, progress=_progress)
    assert found is not None
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(
        f"{found.num_weights:,} weights, {given.train} train and {given.query} query images, "
        f"{torch.get_num_threads()} threads\n\n| | forecast | measured |\n|---|---|---|\n"
        f"| minutes | {expected.seconds / 60:.1f} | {seconds / 60:.1f} (CPU {cpu / 60:.1f}) |\n"
        f"| MB beyond the network and its data | {expected.extra_bytes / 1e6:.0f} | {(peak() - before) / 1e6:.0f} |\n\n"
        f"Verdict: {found.verdict.word if found.verdict else ''}; alpha {found.alpha or 0:.2f}, residual share "
        f"{found.residual_share or 0:.2g}."
    )
    for note in found.notes:
        print(f"- {note}")


def _progress(done: int, total: int) -> None:
    if done % max(1, total // 50) == 0:
        print(f"{done} of {total} steps", file=sys.stderr)


if __name__ == "__main__":
    main()
