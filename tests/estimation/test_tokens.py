"""Influence of single tokens against that of sequences, and against the machinery of examples on the same draws."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import small_language
from bif_lightning.config import Chains, Pairs, Subspace
from bif_lightning.curvature.token_slopes import token_slopes
from bif_lightning.data.dataset import Examples
from bif_lightning.distributed.ranks import Ranks
from bif_lightning.estimation.blocks import BlockBuilder
from bif_lightning.losses.causal_lm import causal_lm_loss
from bif_lightning.losses.observables import mean_of
from bif_lightning.losses.problem import Problem
from bif_lightning.losses.token_losses import TokenValues, zero_absent
from bif_lightning.model.functional import FunctionalBackend
from bif_lightning.results import token_matrices
from bif_lightning.results.estimate import Estimate
from bif_lightning.results.token_products import DrawCovariance
from bif_lightning.results.tokens import Tokens
from bif_lightning.sampling.chain import run_chain
from bif_lightning.sampling.covariances import DrawnCovariances
from bif_lightning.sampling.sgld import SGLDSampler
from bif_lightning.sampling.token_trace import TokenStore, gathered
from bif_lightning.sampling.trace import ChainTrace, batch_lengths
from bif_lightning.statistics.label_means import Labels
from bif_lightning.storage import scratch
from forked import together
from small_language import CHAINS, SAMPLER, by_tokens, padded, sequences, shared_by_tokens

pytestmark = pytest.mark.exact

SETTINGS = {
    "chains": CHAINS,
    "pooled": replace(CHAINS, centring="pooled"),
    "one chain": Chains(num_chains=1, num_draws=60, batch_size=4),
    "uneven batches": Chains(num_chains=2, num_draws=53, batch_size=4),
}


@pytest.fixture(scope="module", params=list(SETTINGS))
def estimated(request: pytest.FixtureRequest) -> Estimate:
    return by_tokens(chains=SETTINGS[request.param], dtype=torch.float64)


def tokens_of(estimate: Estimate) -> Tokens:
    assert estimate.tokens is not None
    return estimate.tokens


def as_examples(estimate: Estimate, labels: Labels | None = None) -> tuple[BlockBuilder, Any]:
    """The tokens' draws taken for those of examples, and what is made of them."""
    tokens, chains = tokens_of(estimate), estimate.chains
    sides = [torch.from_numpy(source.whole()) for source in (tokens.blocks.train, tokens.blocks.query)]
    records = [ChainTrace(chain, batch_lengths(chains), traces=True) for chain in estimate.chain_ids]
    for record, train, query in zip(records, *sides, strict=True):
        for pair in zip(train, query, strict=True):
            record.push(*pair)
        record.seal()
    shape = len(tokens.train), len(tokens.query), len(tokens.query)
    covariances = DrawnCovariances.of(records, shape, replace(chains, ridge=None))
    maker = BlockBuilder.of(covariances, shape, labels)
    return maker, maker.block(slice(0, shape[0]))


def test_which_tokens_there_are() -> None:
    tokens = tokens_of(shared_by_tokens())
    lengths = [len(item["input_ids"]) for item in sequences(9)]
    assert tokens.train.sequence.tolist() == [i for i, length in enumerate(lengths) for _ in range(1, length)]
    assert tokens.train.position.tolist() == [s for length in lengths for s in range(1, length)]
    assert tokens.query.num_sequences == 4
    assert tokens.train.rows_of([3, 1]).tolist() == [
        *np.flatnonzero(tokens.train.sequence == 3), *np.flatnonzero(tokens.train.sequence == 1)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="sequence 9 does not exist; use numbers from 0 to 8"):
        tokens.train.rows_of(9)


def test_tokens_have_the_matrices_and_errors_of_examples(estimated: Estimate) -> None:
    tokens, (_, block) = tokens_of(estimated), as_examples(estimated)
    influence, correlation = tokens.influence(), tokens.correlation()
    np.testing.assert_allclose(influence.value, block.influence, rtol=1e-6)
    np.testing.assert_allclose(correlation.value, block.correlation, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(influence.standard_error, block.influence_error, rtol=1e-6)
    np.testing.assert_allclose(correlation.standard_error, block.correlation_error, rtol=1e-6)
    np.testing.assert_allclose(tokens.train.std, block.train_std, rtol=1e-12)
    np.testing.assert_allclose(tokens.train.loss - tokens.train.snapshot_loss, block.train_mean, rtol=1e-12)


def test_sums_over_tokens_are_the_influence_of_sequences(estimated: Estimate) -> None:
    tokens = tokens_of(estimated)
    model, train, query = tokens.blocks.model, tokens.blocks.train.whole(), tokens.blocks.query.whole()
    whole = model.covariance(model.side(train), model.side(query))
    sums = np.zeros((9, 4))
    np.add.at(sums, (tokens.train.sequence[:, None], tokens.query.sequence), -whole)
    np.testing.assert_allclose(sums, estimated.influence, rtol=1e-6)  # the matrices of sequences are float32
    rows, columns = (side.sequence[:, None] == np.arange(size) for side, size in ((tokens.train, 9), (tokens.query, 4)))
    exact = -model.covariance(model.side(train @ rows), model.side(query @ columns))
    np.testing.assert_allclose(sums, exact, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(tokens.train.loss @ rows, estimated.train_loss, rtol=1e-12)


@pytest.mark.parametrize("sampler", [SAMPLER, Pairs(scale=0.05)], ids=["SGLD", "Pairs"])
def test_sequences_are_bitwise_what_they_are_without_tokens(sampler: Any) -> None:
    one, other = by_tokens(sampler), by_tokens(sampler, per_token=False)
    assert other.tokens is None
    for name, value in vars(other.losses).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(one.losses, name), err_msg=name)
    assert one.diagnostics == other.diagnostics
    np.testing.assert_array_equal(one.loss_trace, other.loss_trace)


def test_some_sequences_are_a_part_of_all() -> None:
    tokens = tokens_of(shared_by_tokens())
    whole, part = tokens.correlation(), tokens.correlation([5, 2], 3)
    rows, columns = tokens.train.rows_of([5, 2]), tokens.query.rows_of(3)
    np.testing.assert_allclose(part.value, whole.value[np.ix_(rows, columns)], rtol=1e-5)
    assert part.standard_error is not None
    assert whole.standard_error is not None
    np.testing.assert_allclose(part.standard_error, whole.standard_error[np.ix_(rows, columns)], rtol=1e-4)


@pytest.mark.parametrize("quantity", ["influence", "correlation"])
def test_values_alone_are_the_same_values(quantity: Any) -> None:
    tokens = tokens_of(shared_by_tokens())
    rows, columns = np.arange(len(tokens.train)), np.arange(len(tokens.query))
    quick, full = (tokens.matrix(rows, columns, quantity, errors=errors) for errors in (False, True))
    assert quick.standard_error is None
    np.testing.assert_allclose(quick.value, full.value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("quantity", ["influence", "correlation"])
@pytest.mark.parametrize("sampler", [SAMPLER, Subspace(num_directions=3, inverse_temperature=30, localization=300)])
def test_a_device_makes_the_same_values(sampler: Any, quantity: Any) -> None:
    """PyTorch's own CPU device; no other one is at hand here."""
    tokens = tokens_of(by_tokens(sampler=sampler, chains=CHAINS))
    here, there = (getattr(tokens, quantity)(errors=False, device=device).value for device in (None, "cpu"))
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-6 * np.nanmax(np.abs(here)))
    with pytest.raises(ValueError, match=r"give errors=False to multiply on 'cpu'"):
        getattr(tokens, quantity)(device="cpu")
    for device in ("nowhere", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(ValueError, match=f"device '{device}' is not available: .* leave `device` out"):
            getattr(tokens, quantity)(errors=False, device=device)


def test_small_tiles_and_a_file_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_of(by_tokens(dtype=torch.float64))
    rows, columns = np.arange(len(tokens.train)), np.arange(len(tokens.query))
    whole = tokens.matrix(rows, columns, "correlation")
    monkeypatch.setattr(token_matrices, "_TILE_BYTES", 4000)
    monkeypatch.setattr(token_matrices, "_VALUE_BYTES", 8 * 60 * 4)
    mapped = list[int]()
    opened = scratch.ScratchArrays._open
    monkeypatch.setattr(scratch.ScratchArrays, "_open", lambda self: mapped.append(self._offsets[-1]) or opened(self))
    tiled = tokens.matrix(rows, columns, "correlation", budget=100)
    assert mapped
    np.testing.assert_allclose(tiled.value, whole.value, rtol=1e-6)
    np.testing.assert_allclose(tiled.standard_error, whole.standard_error, rtol=1e-5)


def test_means_over_groups_are_those_over_labels(estimated: Estimate) -> None:
    tokens = tokens_of(estimated)
    train, query = np.arange(len(tokens.train)) % 3 - 1, np.arange(len(tokens.query)) % 2
    maker, block = as_examples(estimated, Labels(train, query))
    assert maker.grouping is not None
    expected = maker.grouping.means(block.sums, maker.covariances.share, maker.covariances.errors)
    assert expected is not None
    names = [None if place < 0 else "ab"[place] for place in train], ["xy"[place] for place in query]
    for quantity in ("influence", "correlation"):
        found, rows, columns = tokens.group_means(*names, quantity)
        assert (rows, columns) == (["a", "b"], ["x", "y"])
        np.testing.assert_allclose(found.value, getattr(expected, quantity), rtol=1e-9)
        error = getattr(expected, f"{quantity}_standard_error")
        np.testing.assert_allclose(found.standard_error, error, rtol=1e-9)


def test_groups_are_one_for_each_token() -> None:
    tokens = tokens_of(shared_by_tokens())
    with pytest.raises(ValueError, match="got 2 train groups for"):
        tokens.group_means(["a", "b"], ["c"] * len(tokens.query))
    with pytest.raises(ValueError, match="no token is in a group"):
        tokens.group_means([None] * len(tokens.train), ["c"] * len(tokens.query))


def test_a_diverged_chain_leaves_no_token_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(plan: Any, chain: int) -> Any:
        if chain == 1:
            wild = replace(plan.settings, step_size=50.0, localization=0.07)
            plan = replace(plan, kernel=SGLDSampler(wild).unprepared())
        return run_chain(plan, chain)

    monkeypatch.setattr("bif_lightning.sampling.run.run_chain", broken)
    found = by_tokens()
    assert found.chain_ids == (0, 2)
    rest = tokens_of(found)
    monkeypatch.undo()
    whole = tokens_of(shared_by_tokens())
    np.testing.assert_array_equal(rest.blocks.train.whole(), whole.blocks.train.whole()[[0, 2]])
    assert isinstance(rest.blocks.model, DrawCovariance)
    assert rest.blocks.model.chains == 2


def values(*, mask: bool = True) -> TokenValues:
    masks = [torch.tensor([[True, mask]])]
    return TokenValues(torch.zeros(1), torch.arange(1.0 + mask), masks)


def test_a_store_beyond_its_budget_lies_in_a_file(tmp_path: Path) -> None:
    kept = [TokenStore(values(), values(), (0, 4), 3, budget=budget, scratch=tmp_path) for budget in (1 << 20, 8)]
    for store in kept:
        for chain, draw in ((4, 2), (0, 0), (4, 0), (0, 1), (0, 2), (4, 1)):
            moved = replace(values(), values=values().values + chain + draw / 8)
            store.push(chain, draw, moved, moved)
        store.close()
    one, other = (store.changes() for store in kept)
    np.testing.assert_array_equal(one[0], other[0])
    assert one[0][1, :, 0].tolist() == [4, 4.125, 4.25]
    assert list(tmp_path.iterdir()) == []
    some = gathered(kept[1], [4], Ranks(), everywhere=True, scratch=tmp_path)
    assert some is not None
    np.testing.assert_array_equal(some.changes()[0], one[0][1:])


def test_other_tokens_than_at_the_snapshot_are_refused() -> None:
    store = TokenStore(values(), values(), (0,), 1)
    with pytest.raises(ValueError, match="gave 1 tokens of a batch a loss, but 2 at the snapshot"):
        store.push(0, 0, values(mask=False), values(mask=False))


@pytest.mark.slow
def test_ranks_get_the_bits_of_one(tmp_path: Path) -> None:
    together(small_language.work, 2, 2, str(tmp_path))
    alone = tokens_of(shared_by_tokens())
    for rank in range(2):
        theirs = tokens_of(pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()))
        for side in ("train", "query"):
            np.testing.assert_array_equal(
                getattr(theirs.blocks, side).whole(), getattr(alone.blocks, side).whole(), err_msg=side
            )
        np.testing.assert_array_equal(theirs.correlation(2, 1).value, alone.correlation(2, 1).value)


def test_train_against_itself_measures_once() -> None:
    tokens = tokens_of(
        small_language.estimate(
            small_language.language(),
            small_language.causal_lm_loss,
            sequences(5),
            sampler=SAMPLER,
            chains=CHAINS,
            collate_fn=padded,
            per_token=True,
        )
    )
    assert tokens.blocks.train.whole() is tokens.blocks.query.whole()
    np.testing.assert_allclose(np.diag(tokens.correlation().value), 1, rtol=1e-6)


class TestClosedForm:
    def test_sums_over_tokens_are_the_influence_of_sequences_within_the_span(self) -> None:
        found = small_language.estimate(
            small_language.language(torch.float64), small_language.causal_lm_loss, sequences(9),
            sampler=Subspace(num_directions=64), collate_fn=padded, per_token=True,
        )  # fmt: skip
        tokens = tokens_of(found)
        rows = tokens.train.sequence[:, None] == np.arange(9)
        model, slopes = tokens.blocks.model, tokens.blocks.train.whole()
        sums = -model.covariance(model.side(slopes @ rows), model.side(slopes @ rows))
        np.testing.assert_allclose(sums, found.influence, rtol=1e-5, atol=1e-6 * abs(sums).max())
        assert any("within the span" in note for note in found.notes)
        means = found.losses.influence_standard_error
        summed = tokens.group_means(
            [str(i) for i in tokens.train.sequence], [str(i) for i in tokens.train.sequence], "influence"
        )[0]
        count = np.outer(rows.sum(0), rows.sum(0))
        np.testing.assert_allclose(summed.standard_error * count, means, rtol=1e-4, atol=1e-5 * means.max())

    @pytest.mark.parametrize("forward_mode", [True, False])
    def test_slopes_are_those_of_each_tokens_gradient(
        self, forward_mode: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = small_language.language(torch.float64)
        backend, items = FunctionalBackend(model), Examples(sequences(9), padded)
        problem = Problem(
            module=model, loss=zero_absent(causal_lm_loss), objective=mean_of, train=items, query=items, training=items,
            prepare=lambda batch: batch, tokens=causal_lm_loss,
        )  # fmt: skip
        directions = torch.randn(3, backend.layout.size, dtype=torch.float64)
        losses, mask = causal_lm_loss(model, padded(sequences(9)))
        gradients = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses[mask]]
        exact = [
            [
                sum((g * q).sum() for g, q in zip(gradient, backend.layout.pieces(each), strict=True))
                for gradient in gradients
            ]
            for each in directions
        ]
        if not forward_mode:

            def refused(*args: Any) -> None:
                raise NotImplementedError("no forward mode")

            monkeypatch.setattr("torch.autograd.forward_ad.make_dual", refused)
        (slopes,) = token_slopes(problem, backend, directions, 1e-5, Ranks())
        rtol = 1e-10 if forward_mode else 1e-6
        torch.testing.assert_close(slopes, torch.tensor(exact, dtype=torch.float64), rtol=rtol, atol=rtol)
