"""Memory stays within what is said: frozen weights are shared, token matrices lie in a file, tiles are small."""

import math
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.results import token_matrices
from bif_lightning.results.token_matrices import InMemoryTokens
from bif_lightning.results.token_products import DrawCovariance
from bif_lightning.results.tokens import TokenAxis, Tokens, blocks_of
from bif_lightning.sampling.memory import rounded_bytes
from bif_lightning.statistics.standard_errors import ErrorModel, ErrorScale
from bif_lightning.storage import scratch
from bif_lightning.storage.scratch import ScratchArrays
from small_language import SAMPLER, by_tokens, language

pytestmark = pytest.mark.exact


def test_frozen_weights_are_neither_copied_nor_saved() -> None:
    model = language(torch.bfloat16)
    backend = FunctionalBackend(model, ["mix.*"])
    sampled = sum(parameter.numel() for parameter in model.mix.parameters())
    assert backend.layout.num_weights == sampled
    weights = backend.weights()
    assert max(backend.center.numel(), weights.flat.numel()) < sampled + 64  # for the alignment of each of the two
    own = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}

    def addresses(module: torch.nn.Module) -> dict[str, int]:
        return {name: parameter.data_ptr() for name, parameter in module.named_parameters()}

    # `named_parameters` of a twin knows what is a parameter by its dictionaries, whatever tensors they hold.
    found = backend.bind(weights).call(
        lambda module: {
            f"{prefix}.{name}": tensor.data_ptr()
            for prefix, part in module.named_modules() if prefix
            for name, tensor in part._parameters.items()
        }
    )  # fmt: skip
    assert {name for name in own if found[name] != own[name]} == {"mix.weight", "mix.bias"}
    assert addresses(model) == own


@pytest.mark.parametrize("gradient", ["minibatch", "control_variate"])
def test_what_is_held_in_less_precision_is_counted(gradient: str) -> None:
    backend = FunctionalBackend(language(torch.bfloat16), ["mix.*", "norm.*"])
    weights = backend.weights()
    held = [weights] if gradient == "minibatch" else [weights, backend.anchor(weights.gradient)]
    tensors = [tensor for each in held for leaf in each.leaves for tensor in (leaf, leaf.grad)]
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors)
    assert rounded_bytes(backend.layout, 1, len(held)) == sum(tensor.numel() * 2 for tensor in tensors)
    assert rounded_bytes(FunctionalBackend(language()).layout, 1, len(held)) == 0


def made_up(train: int, query: int, draws: int) -> Tokens:
    rng, axes = np.random.default_rng(0), {}
    for side, size in (("train", train), ("query", query)):
        zero = np.zeros(size)
        axes[side] = TokenAxis(
            sequence=np.arange(size) // 50, position=np.arange(size) % 50, num_sequences=-(-size // 50),
            snapshot_loss=zero, loss=zero, std=zero,
        )  # fmt: skip
    sides = (rng.standard_normal((4, draws // 4, size), np.float32) for size in (train, query))
    model = DrawCovariance(4, (draws // 8, draws // 8), "chain", 0.3)
    return Tokens(
        **axes,
        blocks=blocks_of(
            model, ErrorModel(6, ErrorScale(1.0, 100.0), ErrorScale(1.0, math.nan)), *map(InMemoryTokens, sides)
        ),
    )


@pytest.mark.parametrize("errors", [True, False])
def test_a_matrix_beyond_its_budget_takes_no_memory(
    errors: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_matrices, "_VALUE_BYTES", 1 << 20)
    monkeypatch.setattr(token_matrices, "_TILE_BYTES", 1 << 20)
    monkeypatch.setattr(token_matrices, "ScratchArrays", partial(ScratchArrays, directory=tmp_path))
    tokens = made_up(4000, 1500, 200)
    tracemalloc.start()
    try:
        found = tokens.matrix(np.arange(4000), np.arange(1500), "correlation", errors=errors, budget=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.value.nbytes == 24_000_000
    assert peak < 24_000_000
    some = tokens.correlation([7, 3], 2, errors=errors)
    rows, columns = tokens.train.rows_of([7, 3]), tokens.query.rows_of(2)
    np.testing.assert_allclose(some.value, found.value[np.ix_(rows, columns)], atol=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_losses_of_tokens_beyond_their_budget_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = by_tokens()
    mapped = list[int]()
    opened = scratch.ScratchArrays._open
    monkeypatch.setattr(scratch.ScratchArrays, "_open", lambda self: mapped.append(self._offsets[-1]) or opened(self))
    monkeypatch.setattr("bif_lightning.sampling.tokens.TokenStore", _small_store(tmp_path))
    filed = by_tokens()
    assert mapped
    assert whole.tokens is not None
    assert filed.tokens is not None
    np.testing.assert_array_equal(filed.tokens.blocks.train.whole(), whole.tokens.blocks.train.whole())
    np.testing.assert_array_equal(filed.tokens.correlation().value, whole.tokens.correlation().value)
    assert filed.sampler == SAMPLER


def _small_store(folder: Path) -> object:
    from bif_lightning.sampling.token_trace import TokenStore

    def store(*args: object, **kwargs: object) -> TokenStore:
        return TokenStore(*args, **(kwargs | {"budget": 100, "scratch": folder}))

    return store
