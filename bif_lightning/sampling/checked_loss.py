"""Checks of a loss function outside of a Trainer: those of the callback, on copies of what the module holds."""

import torch
from torch import nn

from bif_lightning.data.variety import CheckedExamples
from bif_lightning.losses.collectives import check_collectives
from bif_lightning.losses.derived.user_loss import check_user_loss_on
from bif_lightning.losses.problem import Problem, disable_compile
from bif_lightning.model.devices import check_float64
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.model.sharded import is_sharded
from bif_lightning.model.weights import gradients_aside
from bif_lightning.rng import unaltered_generators
from bif_lightning.sampling.context import device_of


def check_loss_fn(problem: Problem) -> None:
    """Check that the loss of a problem, given by the user, is the loss of each example. Collective.

    Module and global generators stay as they are.

    Raises:
        ValueError: the device of the module has no float64.
        LossRefusedError: see `check_user_loss` and `check_collectives`.
    """
    module, prepare = problem.module, problem.prepare
    check_float64(device_of(module))
    with disable_compile(), unaltered_generators(device_of(module)), torch.inference_mode(False):
        sets = [CheckedExamples.of("train", problem.train, prepare)]
        if problem.query is not problem.train:
            sets.append(CheckedExamples.of("query", problem.query, prepare))

        def check(own: nn.Module) -> None:
            # Chains key the numbers of a random loss, and begin by looking for a gradient to the sampled weights.
            check_user_loss_on(problem.loss, own, sets, gradient=problem.params is None, random=True)
            check_collectives(problem.loss, own, sets[0].batch(), "loss_fn")

        if is_sharded(module):
            check(module)
            return
        names = [name for name, _ in module.named_parameters()]
        backend = FunctionalBackend(module, problem.params, twins=False, copied=names)
        with gradients_aside(module):  # a module that hides weights from its copies computes with its own
            backend.bind(backend.weights()).call(check)
