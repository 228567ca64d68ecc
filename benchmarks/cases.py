"""What is run: a model, its data, and the settings of one snapshot."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import models
from bif_lightning.config import SGLD, Chains
from bif_lightning.data.dataset import Examples
from bif_lightning.losses.problem import Problem


@dataclass(frozen=True)
class Case:
    """One model at one size.

    Attributes:
        build: makes the untrained model.
        data: makes a given number of examples.
        fit_steps: training steps before the snapshot.
        train, query: n and q.
    """

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[int], models.Pairs]
    fit_steps: int
    train: int
    query: int
    chains: Chains
    sampler: SGLD
    eval_batch_size: int = 256

    def problem(self) -> Problem:
        """The trained model and its examples, as the callback would hold them between snapshots."""
        torch.manual_seed(0)
        data, model = self.data(self.train + self.query), self.build()
        models.fit(model, data[: self.train], self.fit_steps, self.chains.batch_size)
        train = Examples(data[: self.train])
        return Problem(
            module=model,
            loss=models.losses,
            objective=models.mean_loss,
            train=train,
            query=Examples(data[self.train :]),
            training=train,
            prepare=_unchanged,
            eval_batch_size=self.eval_batch_size,
        )

    def describe(self) -> str:
        """Its sizes in one line."""
        c = self.chains
        weights = sum(p.numel() for p in self.build().parameters())
        return (
            f"d={weights / 1e6:.2f}M n={self.train} q={self.query} m={c.batch_size} "
            f"C={c.num_chains} T={c.num_draws} k={c.thinning}"
        )

    def scaled(self, *, draws: int = 1, chains: int = 1, examples: int = 1) -> "Case":
        """The same with more draws, chains or train and query examples."""
        c = self.chains
        return replace(
            self,
            train=self.train * examples,
            query=self.query * examples,
            chains=replace(c, num_draws=c.num_draws * draws, num_chains=c.num_chains * chains),
        )


def _unchanged(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def cases(quick: bool) -> dict[str, Case]:
    """All of them, each a snapshot of a few seconds; `quick` takes a fraction of the draws and examples."""
    sampler = SGLD(step_size=1e-7, inverse_temperature=100.0, localization=1000.0)
    mlp = Case(
        "mlp", models.mlp, models.digits, 200, 1000, 200,
        Chains(num_chains=4, num_draws=100, thinning=4, batch_size=64), sampler,
    )  # fmt: skip
    mlp512 = replace(mlp, name="mlp512", chains=replace(mlp.chains, num_draws=50, batch_size=512))
    mlp1024 = replace(mlp, name="mlp1024", train=1500, chains=replace(mlp.chains, num_draws=50, batch_size=1024))
    resnet9 = Case(
        "resnet9", models.ResNet9, models.images, 12, 256, 64,
        Chains(num_chains=2, num_draws=4, thinning=4, batch_size=32), sampler, 64,
    )  # fmt: skip
    gpt = Case(
        "gpt", models.GPT, models.sources, 40, 256, 32,
        Chains(num_chains=2, num_draws=4, thinning=4, batch_size=16), sampler, 64,
    )  # fmt: skip
    if quick:
        mlp = replace(mlp, chains=replace(mlp.chains, num_draws=20))
        mlp512 = replace(mlp512, chains=replace(mlp512.chains, num_draws=8))
        mlp1024 = replace(mlp1024, chains=replace(mlp1024.chains, num_draws=4))
        resnet9 = replace(resnet9, train=64, query=32, chains=replace(resnet9.chains, num_draws=2, thinning=2))
        gpt = replace(gpt, train=64, query=32, chains=replace(gpt.chains, num_draws=2))
    return {case.name: case for case in (mlp, mlp512, mlp1024, resnet9, gpt)}
