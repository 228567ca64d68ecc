"""Losses and batches that differ from call to call by chance: found when a loss is refused, and named with a remedy."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bif_lightning.data.dataset import digest
from bif_lightning.losses.derived.batch_size import BatchOf
from bif_lightning.losses.problem import eval_mode
from bif_lightning.model.devices import raise_unrelated
from bif_lightning.model.sharded import is_sharded
from bif_lightning.rng import seed_global, unaltered_generators

KEYED_LOSS_FN = """\
def keyed_loss_fn(module, batch, repeats=4):
    losses = []
    for example in zip(*batch):  # of a batch that is a tuple or list of tensors
        alone, found = [part[None] for part in example], []
        for repeat in range(repeats):
            torch.manual_seed(repeat)
            found.append(module.training_step(alone, 0))
        losses.append(torch.stack(found).mean())
    return torch.stack(losses)
"""
"""A loss_fn in which every example has random numbers of its own, the same at every draw."""

Source = Literal["the batch", "the loss", "state"]


def by_chance(
    function: Callable[[nn.Module, Any], Tensor], module: nn.Module, batch_of: BatchOf, rows: Sequence[int]
) -> Source | None:
    """What changes with the random numbers: the batch of the same examples, or the loss of the same batch; else None.

    "state" where the loss of the same batch changes from call to call, with the same random numbers.

    The global generators are as before afterwards.
    """
    if is_sharded(module):  # all ranks would have to make the same calls
        return None
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def seeded(call: Callable[[], Any], seed: int) -> Any:
        seed_global(device, seed)
        return call()

    with unaltered_generators(device), eval_mode(module), torch.enable_grad():
        try:
            batches = [seeded(lambda: batch_of(rows), seed) for seed in (0, 1)]
            if digest(batches[0]) != digest(batches[1]):
                return "the batch"
            losses = [seeded(lambda: function(module, batches[0]).detach(), seed) for seed in (0, 0, 1)]
        except Exception as error:  # what fails is told by its own error
            raise_unrelated(error)
            return None
        again, other = (torch.allclose(losses[0], each, rtol=0, atol=0, equal_nan=True) for each in losses[1:])
        return "state" if not again else None if other else "the loss"


def refusal_of_chance(source: Source, name: str) -> str:
    """The message for a loss that is random or keeps state, with what to do.

    Args:
        source: by `by_chance`.
        name: of the function, "training_step" or "loss_fn".
    """
    if source == "the batch":
        return (
            "the batch of the same examples differs from call to call: the collate function or a hook of the module "
            "(on_after_batch_transfer and so on) draws random numbers, for augmentation or for masks, so that the loss "
            "of an example is not a function of the weights alone. Give the callback a collate_fn without them, and "
            "let hooks draw them only where `self.training` is True, which it is not while chains run, instead of "
            "`self.trainer.training`"
        )
    if source == "state":
        return (
            f"{name} gives the same batch another loss from call to call, at the same weights and with the same random "
            "numbers: it keeps state in evaluation mode too, such as a buffer with running statistics, a counter, or a "
            "generator of its own. Let it change that state only where `self.training` is True, which it is not while "
            "chains run, or pass a loss_fn without it"
        )
    return (
        f"{name} draws random numbers in evaluation mode too (a VAE, a diffusion model, noise or masks), so that the "
        "loss of an example is not a function of the weights alone. Pass a loss_fn that starts the generator anew for "
        "each example, which then has the same numbers at every draw. From training_step it is:\n\n"
        f"{KEYED_LOSS_FN}\n"
        "BIFCallback(..., loss_fn=keyed_loss_fn). With several repeats, their mean is closer to the mean over all "
        "random numbers"
    )
