"""Losses of tokens from logits, for every kind of model and batch: what is absent, and where tokens stand."""

from collections import UserDict, namedtuple
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bif_lightning.losses.causal_lm import causal_lm_loss, cross_entropy, token_losses
from bif_lightning.losses.token_losses import by_token, zero_absent
from small_language import WORDS, language, padded, sequences

pytestmark = pytest.mark.exact


def logits(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(*shape, dtype=dtype)


def test_it_is_cross_entropy() -> None:
    z, y = logits(2, 5, 7), torch.randint(0, 7, (2, 5))
    losses, mask = token_losses(z, y)
    torch.testing.assert_close(losses, F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="none").view(2, 5))
    assert mask.all()


def test_ignored_labels_are_absent() -> None:
    z, y = logits(1, 4, 7), torch.tensor([[3, -100, 2, -100]])
    losses, mask = token_losses(z, y)
    assert mask.tolist() == [[True, False, True, False]]
    assert losses[~mask].tolist() == [0, 0]


def test_shifted_labels_stand_where_their_token_does() -> None:
    z, y = logits(2, 5, 7), torch.randint(0, 7, (2, 5))
    losses, mask = token_losses(z, y, shift=True)
    assert mask.tolist() == [[False, True, True, True, True]] * 2
    by_hand, _ = token_losses(z[:, :-1], y[:, 1:])
    torch.testing.assert_close(losses[:, 1:], by_hand)


def test_half_precision_gives_float32() -> None:
    z, y = logits(2, 5, 7, dtype=torch.bfloat16), torch.randint(0, 7, (2, 5))
    losses, _ = token_losses(z, y, chunk=14)
    torch.testing.assert_close(losses, token_losses(z.float(), y)[0], rtol=1e-6, atol=0)
    assert losses.dtype == torch.float32


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits have shape \[5, 7\] and labels \[5\]"):
        token_losses(logits(5, 7), torch.zeros(5, dtype=torch.long))


@pytest.mark.parametrize("tokens", [1, 3, 6, 100])
def test_chunks_change_nothing(tokens: int) -> None:
    z, y = logits(2, 5, 7).requires_grad_(), torch.randint(0, 7, (2, 5))
    weight = torch.linspace(1, 2, 10, dtype=torch.float64).view(2, 5)
    plain = F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="none").view(2, 5)
    (expected,) = torch.autograd.grad((plain * weight).sum(), z)
    losses = cross_entropy(z, y, tokens)
    (found,) = torch.autograd.grad((losses * weight).sum(), z)
    torch.testing.assert_close(losses, plain, rtol=1e-14, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_chunks_have_every_derivative() -> None:
    z, y = logits(1, 3, 4).requires_grad_(), torch.randint(0, 4, (1, 3))
    assert gradcheck(lambda each: cross_entropy(each, y, 2), (z,), check_forward_ad=True)
    assert gradgradcheck(lambda each: cross_entropy(each, y, 2), (z,))


class _Largest(TorchDispatchMode):
    """Counts the tensors that are as large as all logits in float32."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.found = numel, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.numel() >= self.numel:
            self.found.add(out.untyped_storage().data_ptr())
        return out


def test_no_second_copy_of_the_logits_but_their_gradient() -> None:
    z = logits(2, 16, 50, dtype=torch.bfloat16).requires_grad_()
    y = torch.randint(0, 50, (2, 16))
    with _Largest(z.numel()) as forward:
        losses, _ = token_losses(z, y, shift=True, chunk=200)
    assert forward.found <= {z.untyped_storage().data_ptr()}
    with _Largest(z.numel()) as backward:
        losses.sum().backward()
    assert z.grad is not None
    assert len(backward.found - {z.untyped_storage().data_ptr()}) == 1


MODEL = language()


class Named(nn.Module):
    """Takes what a transformer takes, by name, and gives what one gives."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap, self.inner = wrap, MODEL

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Any = None) -> Any:
        assert labels is None
        assert attention_mask is not None
        return self.wrap(self.inner(input_ids))


class Anything(nn.Module):
    """As a wrapper that passes on whatever it gets."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        assert set(kwargs) == {"input_ids", "attention_mask"}
        return SimpleNamespace(logits=MODEL(kwargs["input_ids"]))


Output = namedtuple("Output", "logits cache")
KINDS = {
    "LitGPT": MODEL,
    "object": Named(lambda z: SimpleNamespace(logits=z)),
    "mapping": Named(lambda z: UserDict(logits=z, loss=None)),
    "tuple": Named(lambda z: (z, None)),
    "named tuple": Named(lambda z: Output(z, None)),
    "wrapper": Anything(),
}


@pytest.mark.parametrize("module", KINDS.values(), ids=list(KINDS))
def test_every_kind_of_model(module: nn.Module) -> None:
    batch = UserDict(padded(sequences(3)))
    batch["id"] = ["a", "b", "c"]
    losses, mask = causal_lm_loss(module, batch)
    for row, item in enumerate(sequences(3)):
        ids = item["input_ids"]
        alone = F.cross_entropy(MODEL(ids[None])[0, :-1], ids[1:], reduction="none")
        torch.testing.assert_close(losses[row][mask[row]], alone)
        assert mask[row].nonzero().flatten().tolist() == list(range(1, len(ids)))


def test_padding_on_the_left_moves_no_token() -> None:
    items = sequences(4)
    right, left = (causal_lm_loss(Blind(), padded(items, side)) for side in ("right", "left"))
    torch.testing.assert_close(right[1], left[1])
    torch.testing.assert_close(right[0], left[0])


class Blind(nn.Module):
    """Predicts from the last token alone, so that padding changes nothing."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        table = torch.linspace(-1, 1, WORDS * WORDS).sin().view(WORDS, WORDS)
        return table[input_ids]


def test_labels_of_the_batch_count() -> None:
    batch = padded(sequences(2))
    labels = batch["input_ids"].clone()
    labels[:, :2] = -100
    whole, part = (causal_lm_loss(MODEL, each) for each in (batch, batch | {"labels": labels}))
    assert not part[1][:, :2].any()
    assert torch.equal(part[1][:, 2:], whole[1][:, 2:])
    torch.testing.assert_close(part[0][:, 2:], whole[0][:, 2:])


def test_tensors_and_pairs() -> None:
    ids = torch.randint(0, WORDS, (3, 6))
    whole = causal_lm_loss(MODEL, ids)
    pair = causal_lm_loss(MODEL, (ids[:, :-1], ids[:, 1:]))
    assert pair[1].all()
    torch.testing.assert_close(whole[0][:, 1:], pair[0])


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(ValueError, match="keys text, but without 'input_ids'"):
        causal_lm_loss(MODEL, {"text": "a"})
    with pytest.raises(ValueError, match="batch of type str"):
        causal_lm_loss(MODEL, "a")
    with pytest.raises(ValueError, match=r"returned a tensor of shape \[1, 3\]"):
        causal_lm_loss(nn.Identity(), torch.zeros(1, 3, dtype=torch.long))


def test_absent_losses_are_not_looked_at() -> None:
    values, mask = torch.tensor([[1.0, float("nan")]]), torch.tensor([[True, False]])
    assert zero_absent(lambda module, batch: (values, mask))(MODEL, None).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (torch.zeros(2), r"shape \[2\] for a batch of 2 examples, but per_token=True"),
        ((torch.zeros(2, 3), torch.ones(2, 3)), "float32; the mask must be a tensor of bool"),
        ((torch.zeros(2, 3), torch.ones(2, dtype=torch.bool)), r"mask of shape \[2\]"),
        ((torch.zeros(2, 3), None), r"a tuple \(Tensor, NoneType\)"),
        ((torch.zeros(2, 3),) * 3, r"a tuple \(Tensor, Tensor, Tensor\)"),
    ],
)
def test_losses_of_no_tokens_are_refused(found: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        by_token(found, 2)


class Wrapped(L.LightningModule):
    """The usual module around a language model, without a forward method."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = MODEL

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.body(input_ids)


WRAPPED: dict[str, dict[str, nn.Module]] = {
    "alone": {"model": MODEL},
    "beside a loss": {"criterion": nn.CrossEntropyLoss(), "model": MODEL},
    "by its parameter": {"head": nn.Linear(2, 2), "model": Named()},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_model_in_a_module_without_forward_is_found(name: str) -> None:
    ids = torch.tensor([[1, 4, 2, 3]])
    for batch in (ids, {"input_ids": ids}):
        found, right = (causal_lm_loss(module, batch) for module in (Wrapped(**WRAPPED[name]), MODEL))
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_which_of_several_models_is_asked() -> None:
    with pytest.raises(ValueError, match=r"Wrapped has no forward.*which of model, teacher .*module\.model, batch"):
        causal_lm_loss(Wrapped(model=nn.Linear(2, 2), teacher=nn.Linear(2, 2)), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"which of its parts is the model"):
        causal_lm_loss(Wrapped(), torch.zeros(1, 3, dtype=torch.long))
