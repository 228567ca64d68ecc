"""Models that return something else in evaluation mode: in training mode, where that is safe, else refused."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bif_lightning.exceptions import LossRefusedError
from bif_lightning.losses.derived.derive import check_user_loss, derive_loss

ROWS = [0, 2, 5]
X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


def batch_of(rows: Sequence[int]) -> Any:
    return X[list(rows)], Y[list(rows)]


class Detector(nn.Module):
    """Losses in training mode, detections in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.boxes = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        found = self.boxes(self.drop(self.norm(x)))
        if self.training:
            return {"class": F.cross_entropy(found, y), "size": found.square().mean()}
        return [{"boxes": each} for each in found]


class Dropping(Detector):
    """Drops by a function, which only its own flag turns off."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return super().forward(F.dropout(x, 0.5, self.training), y)


class Detecting(L.LightningModule):
    def __init__(self, model: type[nn.Module] = Detector) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model, self.other = model(), nn.BatchNorm1d(4)

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        return sum(self.model(self.other(batch[0]), batch[1]).values())


class Auxiliary(L.LightningModule):
    """Two heads in training mode, one in evaluation mode, as GoogLeNet and segmentation networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    def forward(self, x: Tensor) -> Any:
        return tuple(head(x) for head in self.heads) if self.training else self.heads[0](x)

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        main, beside = self(batch[0])
        return F.cross_entropy(main, batch[1]) + 0.4 * F.cross_entropy(beside, batch[1])


def step(module: Any, batch: Any) -> object:
    return module.training_step(batch)


def detected(module: Any) -> Tensor:
    """By formula, with running statistics of the normalization and nothing dropped."""
    found = module.model.boxes(module.model.norm(module.other(X)))
    return F.cross_entropy(found, Y, reduction="none") + found.square().mean(1)


def both_heads(module: Any) -> Tensor:
    main, beside = (F.cross_entropy(head(X), Y, reduction="none") for head in module.heads)
    return main + 0.4 * beside


@pytest.mark.exact
@pytest.mark.parametrize(
    ("kind", "part", "right"), [(Detecting, "module.model", detected), (Auxiliary, "module", both_heads)]
)
def test_the_part_that_decides_is_in_training_mode(kind: Any, part: str, right: Any) -> None:
    module = kind().train()
    buffers = [buffer.clone() for buffer in module.buffers()]
    loss = derive_loss(step, module, batch_of, ROWS)
    assert loss.adapted.words.startswith(f"{part} in training mode")
    assert all(each.training for each in module.modules())
    module.eval()
    torch.testing.assert_close(loss(module, batch_of(range(8))), right(module).detach())
    torch.testing.assert_close(loss.objective(module, batch_of(range(8))), right(module).mean())
    assert not any(each.training for each in module.modules())
    assert all(torch.equal(now, before) for now, before in zip(module.buffers(), buffers, strict=True))


def test_what_is_random_in_training_mode_is_refused_with_the_part_that_decides() -> None:
    module = Detecting(Dropping).train()
    buffers = [buffer.clone() for buffer in module.buffers()]
    with pytest.raises(LossRefusedError, match=r"in evaluation mode.*With module.model in training mode(.|\n)*train"):
        derive_loss(step, module, batch_of, ROWS)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(now, before) for now, before in zip(module.buffers(), buffers, strict=True))


def by_hand(module: Any, batch: Any) -> Tensor:
    return torch.stack([step(module, (x[None], y[None])) for x, y in zip(*batch, strict=True)])


def test_the_same_of_a_loss_fn() -> None:
    with pytest.raises(LossRefusedError, match="in evaluation mode, in which chains run, loss_fn raised Attribute"):
        check_user_loss(by_hand, Detecting().train(), batch_of, ROWS)


def test_the_remedy_works() -> None:
    def loss_fn(module: Any, batch: Any) -> Tensor:
        module.model.train()
        module.model.norm.eval()
        module.model.drop.eval()
        try:
            return by_hand(module, batch)
        finally:
            module.model.eval()

    check_user_loss(loss_fn, Detecting().train(), batch_of, ROWS)


def test_an_error_in_both_modes_is_told_as_it_is() -> None:
    def broken(module: nn.Module, batch: Any) -> object:
        raise KeyError("labels")

    with pytest.raises(LossRefusedError, match="training_step raised KeyError") as refused:
        derive_loss(broken, Detecting().train(), batch_of, ROWS)
    assert "evaluation mode" not in str(refused.value)
