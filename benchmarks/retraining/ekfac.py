"""EK-FAC influence by kronfluence 1.0.1 (pip install kronfluence==1.0.1), an optional part of the benchmark."""

import tempfile
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from models import Pairs
from retraining.gradients import Solve
from retraining.tasks import Task, half_square


def ekfac(task: Task, model: nn.Module, fitted_on: Pairs | None = None) -> Solve:
    """−∇l_iᵀ(EK-FAC Fisher + λI)⁻¹∇l_j; λ 0 stands for the library's heuristic, 0.1 x mean eigenvalue of a layer.

    Args:
        task, model: what is attributed, and at which weights.
        fitted_on: examples of the Fisher; None for the train set.

    Raises:
        ImportError: kronfluence is not installed.
    """
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task as LibraryTask

    class Objective(LibraryTask):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            outputs = model(batch[0])
            targets = _sampled(task, outputs.detach()) if sample else batch[1]
            return task.loss(outputs, targets).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    train, query = task.data()
    objective = Objective()
    prepared = prepare_model(deepcopy(model), objective)
    folder = tempfile.TemporaryDirectory()
    analyzer = Analyzer(
        "lds", prepared, objective, cpu=True, output_dir=folder.name, disable_model_save=True, disable_tqdm=True
    )
    torch.manual_seed(0)
    analyzer.fit_all_factors(
        "factors", fitted_on or train, 256, factor_args=FactorArguments("ekfac"), overwrite_output_dir=True
    )

    def solve(damping: float) -> Tensor:
        analyzer.compute_pairwise_scores(
            "scores", "factors", query, train, 256, per_device_train_batch_size=256,
            score_args=ScoreArguments(damping or None), overwrite_output_dir=True,
        )  # fmt: skip
        assert folder.name  # the folder lives as long as this function
        # The library's sign is that of help, its matrix is query x train.
        return -analyzer.load_pairwise_scores("scores")["all_modules"].mT

    return solve


def _sampled(task: Task, outputs: Tensor) -> Tensor:
    """Targets drawn from the model's own predictions."""
    if task.loss is half_square:
        return outputs.squeeze(-1) + torch.randn(outputs.shape[:-1])
    return torch.distributions.Categorical(logits=outputs).sample()
