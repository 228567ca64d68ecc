"""The example of images: its gradients by autograd, and the whole of it as a user runs it, on images made here."""

import gzip
import sys
from pathlib import Path

import fashion_images
import numpy as np
import pytest
import torch
import torch.nn.functional as F


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files in the form of Fashion-MNIST: a bright row of pixels for each class, and noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 80), ("t10k", 100)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), 2 * labels + 3] = 200
        for name, header, values in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            (tmp_path / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + values.tobytes()))
    return tmp_path


def test_images_and_labels_are_those_of_the_file(folder: Path) -> None:
    data = fashion_images.FashionMNIST(folder, "train", 30)
    image, label = data[17]
    assert (len(data), label, image.shape) == (30, 7, (1, 28, 28))
    assert image[0, 2 * 7 + 3].tolist() == pytest.approx([200 / 255] * 28)


def test_products_are_those_of_gradients_by_autograd(folder: Path) -> None:
    torch.manual_seed(0)
    net = fashion_images.ImageClassifier().net
    data = fashion_images.FashionMNIST(folder, "train", 6)
    gradients: list[torch.Tensor] = []
    for image, label in data:
        loss = F.cross_entropy(net(image[None]), torch.tensor([label]))
        gradients.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(net.parameters()))]))
    expected = torch.stack(gradients) @ torch.stack(gradients).T
    np.testing.assert_allclose(
        fashion_images.gradient_products(net, data, data), expected.numpy(), rtol=1e-4, atol=1e-4
    )


def test_the_strongest_come_first() -> None:
    products = np.arange(20.0)[:, None]
    named = fashion_images.by_products(products, 0)
    assert (named.helps, named.hurts) == ([19, 18, 17, 16, 15], [0, 1, 2, 3, 4])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_whole_example(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(folder), "--train", "80", "--epochs", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["fashion_images.py", *options])
    fashion_images.main()
    assert capsys.readouterr().out.count("of the query's class") == 2
    assert (tmp_path / "out" / "fashion_images.png").stat().st_size > 20_000
    # Of the 2 steps, those that the time budget has room for: fewer on a slow machine, but always the last.
    steps = [int(path.stem.removeprefix("step=")) for path in (tmp_path / "out" / "run" / "bif").glob("step=*.h5")]
    assert max(steps) == 2
    assert set(steps) <= {0, 1, 2}
