"""The stagewise toy: its retraining and its closed form by independent code, and the flips that the whole run finds."""

from pathlib import Path

import numpy as np
import pytest
import stagewise
import torch
from lightning.pytorch.loggers import CSVLogger

import bif_lightning as bl


def test_nine_networks_at_once_are_networks_trained_one_by_one() -> None:
    """Without thing 2, by autograd; the divisor stays 8, so leaving out is a weight of 0 and changes nothing else."""
    things, targets = stagewise.hierarchy().tensors
    step, left_out, losses = stagewise.STEPS[3], 2, []
    for kept in (torch.ones(8), 1 - torch.eye(8)[left_out]):
        network = stagewise.DeepLinear(5).double()
        optimizer = network.configure_optimizers()
        for _ in range(step):
            optimizer.zero_grad()
            (stagewise.losses(network, (things.double(), targets.double())) * kept).mean().backward()
            optimizer.step()
        losses.append(stagewise.losses(network, (things.double(), targets.double())).detach().numpy())
    found = stagewise.retrain(5)
    np.testing.assert_allclose(found.effect[3, left_out], losses[0] - losses[1], rtol=1e-6, atol=1e-9)
    assert np.abs(found.effect[3, left_out]).max() > 0.01


def test_strong_pull_leaves_the_product_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """−g_iᵀg_j/γ up to terms of order 1/γ², here for a γ that leaves no others."""
    monkeypatch.setattr(stagewise, "SAMPLER", bl.SGLD(step_size=1e-12, inverse_temperature=1.0, localization=1e8))
    weights = tuple(
        torch.randn(shape.shape, generator=torch.Generator().manual_seed(1)) for shape in stagewise.start(0)
    )
    network = stagewise.DeepLinear(0).double()
    network.first.weight.data, network.second.weight.data = (value.double() for value in weights)
    things, targets = (values.double() for values in stagewise.hierarchy().tensors)
    each = stagewise.losses(network, (things, targets))
    parameters = list(network.parameters())
    parts = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in each]
    slopes = torch.stack([torch.cat([part.flatten() for part in parts_of_one]) for parts_of_one in parts])
    np.testing.assert_allclose(stagewise.closed_form(weights) * 1e8, -(slopes @ slopes.T).numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_sign_flips_outside_its_band_where_closed_form_and_retraining_flip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the steps around the flip, and without pictures, which take longer than the chains."""
    monkeypatch.setattr(stagewise, "STEPS", [15, 45, 75, 105, 120, 150, 165, 180, 195])
    monkeypatch.setattr(stagewise, "TensorBoardLogger", CSVLogger)
    run = bl.open_run(stagewise.watch(0, tmp_path))
    retrained = [stagewise.retrain(seed) for seed in range(20)]
    exact = np.stack([stagewise.closed_form(weights) for weights in retrained[0].weights])
    away = (run.influence.values - exact) / run.influence_standard_error.values
    assert np.abs(away).max() < 5

    found = bl.changes(run, train="dog", query="cat", by="influence")
    flip = found[found["kind"] == "flip"]
    assert len(flip) == 1
    before, after = stagewise.STEPS.index(45), stagewise.STEPS.index(195)
    assert 45 < int(flip["step"].iloc[0]) < 195
    band = bl.trajectory(run, train="dog", query="cat", by="influence")
    assert band["band_high"].iloc[stagewise.STEPS.index(75)] < 0 < band["band_low"].iloc[after]
    dog, cat = stagewise.NAMES.index("dog"), stagewise.NAMES.index("cat")
    assert stagewise.flips(stagewise.STEPS, exact[:, dog, cat]) == [120]
    effect = np.stack([each.effect[:, dog, cat] for each in retrained])
    error = effect.std(0, ddof=1) / len(effect) ** 0.5
    assert (effect.mean(0) + 5 * error)[before] < 0 < (effect.mean(0) - 5 * error)[after]
