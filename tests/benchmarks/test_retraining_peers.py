"""The peers against dense linear algebra, and the whole benchmark on a small task from start to end."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

import lds
import small_tasks
from bif_lightning.config import SGLD, Chains
from retraining import cifar10, gradients
from retraining import truth as truths
from retraining.tasks import TASKS, Task, stack

BOTH = pytest.mark.parametrize("task", [small_tasks.classes(), small_tasks.values()], ids=lambda task: task.name)


def seeded(task: Task) -> nn.Module:
    torch.manual_seed(3)
    return task.build()


def rows(task: Task, model: nn.Module, part: int) -> Tensor:
    parameters = list(model.parameters())
    found = list[Tensor]()
    for x, y in task.data()[part]:
        pieces = torch.autograd.grad(task.losses(model, (x[None], y[None])).sum(), parameters)
        found.append(torch.cat([piece.flatten() for piece in pieces]))
    return torch.stack(found).double()


@BOTH
def test_gradient_products(task: Task) -> None:
    model = seeded(task)
    train, query = rows(task, model, 0), rows(task, model, 1)
    torch.testing.assert_close(gradients.dot(task, model)(0).double(), -train @ query.mT, rtol=1e-4, atol=1e-5)
    one = train[3] @ query[2] / (train[3].norm() * query[2].norm())
    assert float(gradients.cosine(task, model)(0)[3, 2]) == pytest.approx(-float(one), rel=1e-4)


@BOTH
def test_empirical_fisher(task: Task) -> None:
    model = seeded(task)
    train, query = rows(task, model, 0), rows(task, model, 1)
    dense = train.mT @ train / len(train) + 0.03 * torch.eye(train.shape[1])
    found = gradients.empirical_fisher(task, model)(0.03)
    torch.testing.assert_close(found, -train @ torch.linalg.solve(dense, query.mT), rtol=1e-3, atol=1e-4)


@BOTH
def test_gauss_newton_is_the_hessian_of_a_linearized_model(task: Task) -> None:
    model = seeded(task)
    names = dict(model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in names.values()])
    inputs, targets = stack(task.data()[0])

    def outputs(weights: Tensor) -> Tensor:
        parts = weights.split([p.numel() for p in names.values()])
        pairs = zip(parts, names.items(), strict=True)
        return functional_call(model, {name: part.view(p.shape) for part, (name, p) in pairs}, (inputs,))

    jacobian = torch.func.jacrev(outputs)(flat)
    base = outputs(flat).detach()
    curvature = hessian(lambda step: task.loss(base + jacobian @ step, targets).mean())(torch.zeros_like(flat))
    dense = curvature.double() + 0.05 * torch.eye(len(flat))
    train, query = rows(task, model, 0), rows(task, model, 1)
    found = gradients.gauss_newton(task, model)(0.05)
    torch.testing.assert_close(found, -train @ torch.linalg.solve(dense, query.mT), rtol=1e-2, atol=1e-3)


def test_gauss_newton_says_when_there_are_too_many_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "LARGEST_DENSE", 10)
    task = small_tasks.values()
    with pytest.raises(NotImplementedError, match="25 weights"):
        gradients.gauss_newton(task, seeded(task))


def test_effective_damping() -> None:
    curvatures = torch.tensor([4.0, 1.0, 0.25])
    damping = gradients.effective_damping(curvatures, 1.5)
    assert float((curvatures / (curvatures + damping)).sum()) == pytest.approx(1.5, rel=1e-5)


def test_trak_with_room_enough_is_a_gauss_newton_influence() -> None:
    # Projections to more dimensions than weights lose nothing: of the square loss it is then −g_iᵀ(JᵀJ)⁻¹g_j, but for
    # the size of the query's residual.
    task = replace(small_tasks.values(), build=lambda: nn.Linear(2, 1))
    model = seeded(task)
    (inputs, targets), (others, answers) = (stack(part) for part in task.data())
    residual = (targets - model(inputs).squeeze(1)).detach()
    jacobian = rows(task, model, 0) / -residual.double()[:, None]
    query = rows(task, model, 1) / (answers - model(others).squeeze(1)).abs().detach().double()[:, None]
    expected = -rows(task, model, 0) @ torch.linalg.solve(jacobian.mT @ jacobian, query.mT)
    torch.testing.assert_close(gradients.trak(task, model)(40).double(), expected, rtol=1e-3, atol=1e-4)


def test_margins_have_the_slope_of_the_loss() -> None:
    task = small_tasks.classes()
    model = seeded(task)
    margins, slopes = gradients._margin_gradients(task, model, task.data()[0])
    torch.testing.assert_close((-slopes[:, None] * margins).double(), rows(task, model, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_table_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = small_tasks.classes()
    monkeypatch.setitem(TASKS, task.name, task)
    truths.save(truths.make(task), task, tmp_path, np.float32)
    names = ("gradient", "TRAK", "Fisher", "Subspace")
    chosen = [word for name in names for word in ("--method", name)]
    lds.main(["--task", task.name, "--cache", str(tmp_path), "--threads", "1", "--against", "gradient dot", *chosen])
    printed = capsys.readouterr().out
    lines = {line.split(" | ")[0].strip("| "): line for line in printed.splitlines() if line.startswith("|")}
    for name in ("gradient dot product", "gradient cosine", "TRAK, one checkpoint, k = 128", "Subspace 64"):
        assert " ± " in lines[name], printed
    answers = [name for name in lines if "chosen on the answer" in name]
    assert len(answers) == 2
    assert "LDS less that of gradient dot product" in printed


def test_a_peer_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    task = small_tasks.classes()
    monkeypatch.setitem(__import__("sys").modules, "kronfluence.analyzer", None)
    lines = list(lds.table(task, truths.make(task), lds.chosen(["EK-FAC"]), ["EK-FAC"]))
    assert any("pip install kronfluence" in line for line in lines), lines


def written(folder: Path) -> dict[str, str]:
    """Six files of that data set's format with 20 images each, and their digests."""
    rng = np.random.default_rng(0)
    digests = dict[str, str]()
    for name in cifar10.FILES:
        labels = rng.integers(10, size=20)
        images = (rng.integers(256, size=(20, 3072)) // 4 + labels[:, None] * 15).astype(np.uint8)
        content = pickle.dumps({b"data": images, b"labels": labels.tolist()})
        (folder / name).write_bytes(content)
        digests[name] = hashlib.md5(content).hexdigest()
    return digests


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 10)
    )


def test_the_images_are_read_as_they_are_laid_out(tmp_path: Path) -> None:
    train, test = cifar10.read(tmp_path, written(tmp_path))
    assert (len(train), len(test)) == (100, 20)
    entry = pickle.loads((tmp_path / "data_batch_2").read_bytes())
    red_of_row_1 = entry[b"data"][7].reshape(3, 32, 32)[0, 1]
    torch.testing.assert_close(train[27][0][0, 1], (torch.from_numpy(red_of_row_1).float() / 255 - 0.4914) / 0.2470)
    assert int(train[27][1]) == entry[b"labels"][7]


def test_missing_or_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_batch_1 is missing.*python version"):
        lds.main(["--cifar10", str(tmp_path)])
    written(tmp_path)
    with pytest.raises(ValueError, match="the published file c99cafc1"):
        lds.main(["--cifar10", str(tmp_path)])


@pytest.mark.slow
def test_the_experiment_on_images_from_start_to_end(tmp_path: Path) -> None:
    settings = cifar10.Settings(
        subsets=5, reference_epochs=2, warmup_images=10, warmup_steps=2, batch_size=16, attribution=40, queries=15,
        sampler=SGLD(step_size=1e-5, inverse_temperature=200.0, localization=1e4, gradient="minibatch"),
        chains=Chains(num_chains=2, num_draws=4, batch_size=16, centring="pooled"), build=small_network,
    )  # fmt: skip
    task, truth, methods = cifar10.experiment(tmp_path, settings, written(tmp_path), progress=lambda text: None)
    assert truth.subsets.shape == (5, 40)
    assert truth.losses.shape == (5, 1, 15)
    assert 5 * 40 * 0.3 < int(truth.subsets.sum()) < 5 * 40 * 0.7
    lines = list(lds.table(task, truth, methods, "EK-FAC"))
    assert any(line.startswith("| paper: SGLD, pooled | ") and " ± " in line for line in lines), lines


def test_the_warm_up_leaves_no_trace_in_the_weights(tmp_path: Path) -> None:
    train, _ = cifar10.read(tmp_path, written(tmp_path))
    settings = cifar10.Settings(build=small_network, batch_size=16, warmup_steps=3)
    module = cifar10.fit(settings, train, train[:16], 0, seed=4)
    torch.manual_seed(4)
    for ours, fresh in zip(module.state_dict().values(), small_network().state_dict().values(), strict=True):
        assert torch.equal(ours, fresh)
