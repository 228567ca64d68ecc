"""Tensors of subclasses that carry something along, in batches and in losses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from bif_lightning.data.dataset import Examples, digest
from bif_lightning.data.tensors import plain_tensor
from bif_lightning.losses.derived.derive import check_user_loss, derive_loss
from bif_lightning.losses.observables import checked_rows, mean_of
from bif_lightning.losses.token_losses import by_token, zero_absent

pytestmark = pytest.mark.exact


class Meta(Tensor):
    """An image with the name of its file, as MONAI's MetaTensor: a stack of them cannot be sliced without all names."""

    names: tuple[str, ...] = ()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        given = [part for arg in args for part in (arg if isinstance(arg, list | tuple) else [arg])]
        metas = [part for part in given if isinstance(part, Meta)]
        if func is Tensor.__getitem__ and metas and len(metas[0].names) != metas[0].shape[0]:
            raise ValueError("inconsistent names when slicing")
        if isinstance(found, Meta):
            found.names = tuple(name for part in metas for name in part.names)
        return found


def meta(values: Tensor, *names: str) -> Any:
    found = values.as_subclass(Meta)
    found.names = names
    return found


G = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 4, generator=G), torch.randn(12, generator=G)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 1)

    def losses(self, batch: Any) -> Tensor:
        return (self.body(batch[0])[:, 0] - batch[1]).abs().sqrt()


def batch_of(rows: Any) -> Any:
    return meta(X[list(rows)], *(f"{row}.png" for row in rows)), Y[list(rows)]


def test_plain_tensors() -> None:
    carried = meta(X, "a")
    assert type(plain_tensor(carried)) is Tensor
    assert torch.equal(plain_tensor(carried), X)
    assert plain_tensor(X) is X
    assert plain_tensor("text") == "text"


def test_the_gradient_passes() -> None:
    leaf = X.clone().requires_grad_()
    plain_tensor(meta(leaf * 2, "a")).sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(X, 2))


def test_losses_of_a_subclass_are_taken_as_plain_ones() -> None:
    module = Net().eval()
    expected = module.losses((X, Y)).detach()
    loss = derive_loss(lambda m, batch: m.losses(batch).mean(), module, batch_of, [0, 3, 5, 8])
    found = torch.cat([loss(module, batch_of([row])) for row in range(12)])
    assert type(found) is Tensor
    torch.testing.assert_close(found, expected)
    loss.objective(module, batch_of(range(5))).backward()
    each = zero_absent(lambda m, batch: m.losses(batch))
    check_user_loss(each, module, batch_of, [0, 3, 5])
    assert type(mean_of(each(module, batch_of([1, 2])))) is Tensor
    assert type(checked_rows(module.losses(batch_of([1, 2])), 2, "loss")) is Tensor
    tokens, mask = by_token(meta(X, "a"), 12)
    assert type(tokens) is type(mask) is Tensor


def test_batches_of_a_subclass_are_collated_each_time() -> None:
    items = [(meta(X[row], f"{row}.png"), Y[row]) for row in range(12)]

    def collate(some: Any) -> Any:
        names = [name for x, _ in some for name in x.names]
        return meta(torch.stack([plain_tensor(x) for x, _ in some]), *names), torch.stack([y for _, y in some])

    examples, plain = Examples(items, collate), Examples(list(zip(X, Y, strict=True)), default_collate)
    examples.prepare()
    plain.prepare()
    assert not examples.in_memory
    assert plain.in_memory
    assert examples.batch(torch.tensor([4, 2]))[0].names == ("4.png", "2.png")
    assert digest(examples.batch(torch.tensor([4, 2]))) == digest(collate([items[4], items[2]]))
