"""Datasets and batches of every common kind, stacked where that changes no bit."""

import dataclasses
import time
from collections import UserDict, namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

import small_models as models
from bif_lightning.config import SGLD, Chains
from bif_lightning.data.dataset import Examples, digest
from bif_lightning.estimation.estimate import estimate
from small_models import cross_entropy

pytestmark = pytest.mark.exact

SAMPLER = SGLD(step_size=1e-3, inverse_temperature=20.0, localization=10.0)
CHAINS = Chains(num_chains=2, num_draws=4, batch_size=5)


def test_hugging_face_datasets_and_dictionary_batches() -> None:
    def loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return cross_entropy(module, (batch["x"], batch["y"]))

    rows = [{"x": x, "y": y} for x, y in models.data()]
    hub = Dataset.from_list([{"x": x.tolist(), "y": int(y)} for x, y in models.data()]).with_format("torch")
    expected = estimate(models.seeded(models.mlp), cross_entropy, models.data(), sampler=SAMPLER, chains=CHAINS)
    for train in (rows, hub):
        got = estimate(models.seeded(models.mlp), loss, train, sampler=SAMPLER, chains=CHAINS)
        np.testing.assert_allclose(got.influence, expected.influence, rtol=1e-4, atol=1e-8)


class Ragged:
    """Sequences of different lengths."""

    def __init__(self, longest_first: bool) -> None:
        lengths = [9, *range(2, 9), 5, 3, 2, 2, 2] if longest_first else [*range(2, 9), 5, 3, 9, 2, 2, 2]
        generator = torch.Generator().manual_seed(0)
        self.items = [torch.randint(1, 7, (length,), generator=generator) for length in lengths]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        return self.items[index]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def padded(items: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(items, batch_first=True)


def token_losses(module: nn.Module, ids: Tensor) -> Tensor:
    """Next-token losses, [batch, token], 0 at padding."""
    logits = module(ids[:, :-1])
    each = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return each * (ids[:, 1:] != 0)


@pytest.mark.parametrize("longest_first", [True, False])
def test_ragged_examples_are_collated_batch_by_batch(longest_first: bool) -> None:
    data = Ragged(longest_first)
    examples = Examples(data, padded)
    examples.prepare()
    for rows in ([1, 2], [8, 3, 10], [0, 9], list(range(13))):
        got, expected = examples.batch(torch.tensor(rows)), padded([data[i] for i in rows])
        assert got.shape == expected.shape
        assert torch.equal(got, expected)


def test_token_losses_are_summed() -> None:
    data = Ragged(True)
    module = models.seeded(Tokens)
    one = estimate(module, token_losses, data, collate_fn=padded, sampler=SAMPLER, chains=CHAINS)
    other = estimate(
        module, lambda m, b: token_losses(m, b).sum(1), data, collate_fn=padded, sampler=SAMPLER, chains=CHAINS
    )
    np.testing.assert_allclose(one.influence, other.influence, rtol=1e-4, atol=1e-8)
    at_snapshot = [token_losses(module, item[None]).sum().item() for item in data.items]
    assert one.snapshot_loss == pytest.approx(np.mean(at_snapshot), rel=1e-5)


@pytest.mark.parametrize("kind", ["tuple", "dict", "list"])
def test_stacked_data_gives_the_bits_of_collated_data(kind: str) -> None:
    pairs = models.data()
    items = {"tuple": pairs, "dict": [{"x": x, "y": y} for x, y in pairs], "list": [[x, y] for x, y in pairs]}[kind]
    examples, plain = Examples(items), Examples(items)
    examples.prepare()
    items.clear()  # from here on only what was stacked is left
    rows = torch.tensor([7, 1, 4])
    with pytest.raises(IndexError):
        plain.batch(rows)
    got = examples.batch(rows)
    x = got["x"] if kind == "dict" else got[0]
    assert torch.equal(x, torch.stack([pairs_x for pairs_x, _ in models.data()])[rows])
    assert type(got) is {"dict": dict}.get(kind, list)


def test_data_that_changes_is_not_stacked() -> None:
    class Augmented:
        calls = 0

        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Tensor:
            Augmented.calls += 1
            return torch.tensor(float(Augmented.calls))

    examples = Examples(Augmented())
    examples.prepare()
    first, second = examples.batch(torch.arange(3)), examples.batch(torch.arange(3))
    assert not torch.equal(first, second)
    assert not examples.repeats


def test_a_dataset_is_read_by_one_thread_at_a_time() -> None:
    class OneReader:
        """Like a file: a position, then a read."""

        position = 0

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Tensor, str]:
            self.position = index
            time.sleep(1e-4)
            assert self.position == index, "two threads at once"
            return models.data()[index][0], "not a tensor, so that nothing is stacked"

    def loss(module: nn.Module, batch: tuple[Tensor, list[str]]) -> Tensor:
        return module(batch[0]).square().sum(1)

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = estimate(
            models.seeded(models.mlp), loss, OneReader(), sampler=SAMPLER,
            chains=Chains(num_chains=4, num_draws=4, batch_size=5),
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert found.cost.workers == 4


@dataclasses.dataclass
class Batch:
    x: Any
    size: int = 2


Named = namedtuple("Named", ["x", "y"])

VALUES = torch.arange(3000.0).reshape(2, -1)
"""So many that their text leaves out those in the middle."""

HOLDERS: dict[str, Any] = {
    "tensor": lambda x: x,
    "array": lambda x: x.numpy(),
    "array of objects": lambda x: np.array([x[0].tolist(), "a"], dtype=object),
    "list": lambda x: [x],
    "dictionary": lambda x: {"a": {"b": x}},
    "mapping": lambda x: UserDict(a=x),
    "namedtuple": lambda x: Named(x, 1),
    "dataclass": Batch,
    "object": lambda x: SimpleNamespace(x=x),
    "object in a dataclass in a list": lambda x: [Batch(SimpleNamespace(x=[x]))],
    "sparse": lambda x: x.to_sparse_coo(),
    "compressed": lambda x: x.to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1, :7]]),
    "bfloat16": lambda x: x.bfloat16(),
    "scalars": lambda x: [float(x[0, 700]), str(x[0, 700])],
}


@pytest.mark.filterwarnings("ignore:.*[Nn]ested tensors", "ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("name", HOLDERS)
def test_a_digest_sees_every_value(name: str) -> None:
    hold, other = HOLDERS[name], VALUES.clone()
    other[0, 700] += 4
    assert digest(hold(VALUES)) == digest(hold(VALUES.clone()))
    assert digest(hold(VALUES)) != digest(hold(other))


def test_a_digest_of_objects_that_hold_each_other_ends() -> None:
    one, other = SimpleNamespace(x=1), SimpleNamespace(x=2)
    one.other, other.other = other, [one]
    before = digest(one)
    other.x = 3
    assert digest(one) != before


def test_sparse_batches_are_collated_anew() -> None:
    data = [torch.eye(4).to_sparse_coo()] * 6
    examples = Examples(data, torch.stack)
    examples.prepare()
    assert not examples.in_memory
    assert torch.equal(examples.batch(torch.tensor([1, 2])).to_dense(), torch.eye(4).expand(2, 4, 4))


def test_augmentation_in_a_dataclass_is_found() -> None:
    class Augmented:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Tensor:
            return torch.randn(1000)

    class Unseeded(Augmented):
        generator = torch.Generator()

        def __getitem__(self, index: int) -> Tensor:
            return torch.randn(1000, generator=self.generator)

    collate = lambda items: Batch(torch.stack(items))  # noqa: E731
    for data, repeats in ((Augmented(), True), (Unseeded(), False)):
        examples = Examples(data, collate)
        examples.prepare()
        assert examples.repeats == repeats
