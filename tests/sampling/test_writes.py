"""Forward passes that write into weights: chains get copies of those that are not sampled, sampled ones are refused."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bif_lightning.config import SGLD, Chains
from bif_lightning.estimation.estimate import estimate

pytestmark = pytest.mark.exact

SAMPLER = SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
CHAINS = Chains(num_chains=4, num_draws=6, batch_size=5)
G = torch.Generator().manual_seed(0)
DATA = [(torch.randint(9, (4,), generator=G), i % 3) for i in range(16)]


class Letters(nn.Module):
    """Rows of the embedding are longer than the largest norm, so that every look-up writes."""

    def __init__(self, max_norm: float | None = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.letter, self.body = nn.Embedding(9, 5, max_norm=max_norm), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.letter(x).mean(1).tanh())


class Clipped(Letters):
    """Clips its embedding by way of `.data`, which torch does not count as a write."""

    def __init__(self) -> None:
        super().__init__(None)

    def forward(self, x: Tensor) -> Tensor:
        self.letter.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


def losses(module: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def written_before(module: Letters) -> Letters:
    """The module as it is after its own writes, which then change nothing more."""
    with torch.no_grad():
        module(torch.stack([x for x, _ in DATA]))
    return module


@pytest.mark.parametrize("make", [Letters, Clipped])
def test_weights_that_are_not_sampled_stay_and_each_chain_has_its_own(make: Any) -> None:
    module = make()
    before = module.letter.weight.detach().clone()
    found = estimate(module, losses, DATA, DATA[:5], params="body.*", sampler=SAMPLER, chains=CHAINS)
    assert torch.equal(module.letter.weight, before)
    assert any("writes into letter.weight" in note and "copies of its own" in note for note in found.notes)
    right = Letters(None)
    right.load_state_dict(written_before(make()).state_dict())
    expected = estimate(right, losses, DATA, DATA[:5], params="body.*", sampler=SAMPLER, chains=CHAINS)
    assert expected.notes == ()
    np.testing.assert_allclose(found.influence, expected.influence, rtol=1e-4, atol=1e-9)


def test_sampled_weights_are_refused_and_the_remedy_is_that_above() -> None:
    with pytest.raises(ValueError, match=r"writes into letter.weight, which are sampled.*params=\['body.weight', 'bod"):
        estimate(Letters(), losses, DATA, sampler=SAMPLER, chains=CHAINS)
