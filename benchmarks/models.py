"""Models of the benchmarks and their data: nothing is downloaded."""

import gzip
import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

Pairs = list[tuple[Tensor, Tensor]]
"""Examples (input, target) of a map-style dataset."""


def mlp() -> nn.Module:
    """64 -> 256 -> 256 -> 10 on the digits of scikit-learn: 85,002 weights."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def digits(count: int) -> Pairs:
    """`count` digits, 64 pixels in [0, 1] each; from the first again past the last, 1797."""
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()
    return [(inputs[i % len(inputs)], targets[i % len(inputs)]) for i in range(count)]


def fashion_mnist(count: int, folder: str | os.PathLike[str] | None = None) -> Pairs:
    """The first `count` images of Fashion-MNIST's train set, 784 pixels in [0, 1] each.

    Args:
        count: of images.
        folder: with train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz; None for $FASHION_MNIST, else the place
            where Debian's package dataset-fashion-mnist puts them.

    Raises:
        FileNotFoundError: they are not there.
    """
    where = Path(folder or os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    try:
        pixels, labels = (_idx(where / f"train-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename} does not exist: apt-get install dataset-fashion-mnist, or set FASHION_MNIST to the "
            "folder with the files of Fashion-MNIST"
        ) from error
    inputs = torch.from_numpy(pixels[:count].reshape(count, -1)).float() / 255
    return list(zip(inputs, torch.from_numpy(labels[:count]).long(), strict=True))


def _idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format: two zeros, type 8, number of axes; sizes as big-endian uint32; the bytes."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    shape = np.frombuffer(data, ">u4", axes, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


class ResNet9(nn.Module):
    """The small residual network of fast CIFAR training, at 2.0 million weights."""

    def __init__(self, widths: tuple[int, int, int, int] = (32, 64, 128, 288), classes: int = 10) -> None:
        super().__init__()
        a, b, c, d = widths
        self.stem = nn.Sequential(_conv(3, a), _conv(a, b), nn.MaxPool2d(2))
        self.first = nn.Sequential(_conv(b, b), _conv(b, b))
        self.down = nn.Sequential(_conv(b, c), nn.MaxPool2d(2), _conv(c, d), nn.MaxPool2d(2))
        self.second = nn.Sequential(_conv(d, d), _conv(d, d))
        self.head = nn.Linear(d, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = self.down(x + self.first(x))
        x = x + self.second(x)
        return self.head(x.amax((2, 3)))


def _conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def images(count: int) -> Pairs:
    """Images 3 x 32 x 32 of ten classes, each a fixed pattern under noise of the same size."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 3, 32, 32, generator=generator)
    labels = torch.arange(count) % 10
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    return [(patterns[label] + noise[i], label) for i, label in enumerate(labels)]


class GPT(nn.Module):
    """A decoder over bytes, 5 blocks of width 128 and 64 positions: 1.07 million weights."""

    def __init__(self, width: int = 128, heads: int = 4, blocks: int = 5, length: int = 64) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def sources(count: int, length: int = 64) -> Pairs:
    """Pieces of Python's own sources as bytes, and the same pieces one byte on."""
    text = b"".join(path.read_bytes() for path in _standard_library())
    stride = (len(text) - 1) // count
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    starts = range(0, count * stride, stride)
    return [(tokens[s : s + length], tokens[s + 1 : s + length + 1]) for s in starts]


def _standard_library() -> Iterable[Path]:
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def fit(model: nn.Module, data: Pairs, steps: int, batch_size: int) -> None:
    """A few steps of Adam, so that a snapshot is of weights (and running statistics) that have seen data."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(data), (batch_size,), generator=generator).tolist()
        inputs, targets = (torch.stack(part) for part in zip(*(data[row] for row in rows), strict=True))
        optimizer.zero_grad()
        mean_loss(model, (inputs, targets)).backward()
        optimizer.step()
    model.eval()


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch, over its tokens where there are tokens."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of each example, [batch], or of each token, [batch, token]."""
    inputs, targets = batch
    logits = model(inputs)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)
