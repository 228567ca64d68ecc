"""Training steps that fail on a batch of one: the example is then in the batch twice, which leaves a mean as it is."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bif_lightning.losses.derived.batch_size import examples_in
from bif_lightning.losses.derived.example_form import is_list_of_values
from bif_lightning.losses.derived.intercept import NotSeparableError, Step

TWICE = "an example alone twice in its batch, since training_step fails on a batch of one"


def twice_alone(step: Step) -> Step:
    """The training step that gets a batch of one as a batch of two equal examples.

    For a loss that is a mean over examples it is the same step. Of one that adds them up it doubles the loss of an
    example alone, so that checks with three examples or more refuse it.
    """

    def call(module: nn.Module, batch: Any) -> object:
        return step(module, tree_map(_doubled, batch, is_leaf=is_list_of_values) if _is_single(batch) else batch)

    return call


def _is_single(batch: Any) -> bool:
    try:
        return examples_in(batch) == 1
    except NotSeparableError:
        return False


def _doubled(part: Any) -> Any:
    if isinstance(part, Tensor):
        return torch.cat([part, part]) if part.dim() else part
    return part + part if is_list_of_values(part) and len(part) == 1 else part
