"""Tokens of a pair of examples, as the page gets them."""

import json
from pathlib import Path

import numpy as np
import pytest

import bif_lightning as bl
from bif_lightning.results.examples import Samples
from plugin_runs import ask, files_of, refused, told
from small_language import sequences, shared_by_tokens

pytestmark = pytest.mark.exact


def samples(side: str, count: int, seed: int) -> Samples:
    ids = [item["input_ids"].numpy() for item in sequences(count, seed)]
    return Samples(
        ids=tuple(f"{side}{row}" for row in range(count)),
        index=np.arange(count),
        tokens=tuple(tuple(f" <{number}>" for number in row) for row in ids),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("tokens")
    estimate, train, query = shared_by_tokens(), samples("t", 9, 0), samples("q", 4, 1)
    bl.write_samples(folder, train, query)
    bl.write_dump(folder, estimate, step=7, epoch=0, train=train, query=query)
    return folder, files_of(folder), train, query


@pytest.mark.parametrize("matrix", ["correlation", "influence"])
def test_every_token_of_a_pair_has_its_place(run, matrix):
    folder, files, train, query = run
    of = told(files, "tokens", step=7, matrix=matrix, train=3, query=1)
    assert of["train"]["tokens"] == list(train.tokens[3])
    assert of["query"]["tokens"] == list(query.tokens[1])
    block = getattr(bl.open_tokens(folder / "step=000000007.h5"), matrix)(3, 1)
    value, error = (np.array(of[name], float) for name in ("value", "standard_error"))
    rows, columns = (block[f"{side}_position"].values for side in ("train", "query"))
    sign = 1 if matrix == "correlation" else -1  # effects are shown
    np.testing.assert_allclose(value[np.ix_(rows, columns)], sign * block["value"], rtol=1e-5)
    np.testing.assert_allclose(error[np.ix_(rows, columns)], block["standard_error"], rtol=1e-5)
    # Nothing comes before the first token, so it has no loss.
    assert (of["train"]["loss"][0], set(of["value"][0])) == (None, {None})
    assert of["train"]["loss"][1] == pytest.approx(float(block["train_loss"][0]))


def test_a_token_has_an_effect_with_the_whole_other_sequence(run):
    """The influence with a sum is the sum of influences; its error is that of a covariance of the same draws."""
    folder, files, _, _ = run
    of = told(files, "tokens", step=7, matrix="influence", train=3, query=1)
    block = bl.open_tokens(folder / "step=000000007.h5").influence(3, 1)
    for side, axis, position in (("train", 1, block.train_position), ("query", 0, block.query_position)):
        whole, error = (np.array(of[side][name], float) for name in ("whole", "whole_standard_error"))
        expected = -block["value"].values.sum(axis)
        np.testing.assert_allclose(whole[position.values], expected, rtol=1e-4, atol=1e-6)
        # No less than the sum of errors of opposite sign, no more than that of errors of one sign.
        assert (error[position.values] > 0).all()
        assert (error[position.values] <= block["standard_error"].values.sum(axis) * 1.001).all()
        assert np.isnan(whole[0])


def test_the_correlation_with_a_sequence_is_that_of_the_summed_losses(run):
    folder, files, _, _ = run
    of = told(files, "tokens", step=7, matrix="correlation", train=3, query=1)
    tokens = bl.open_tokens(folder / "step=000000007.h5")
    block = tokens.influence(3, 1)
    rows = tokens.train.rows_of(3)
    whole = np.array(of["train"]["whole"], float)[block.train_position.values]
    # Corr(l_s, L) = Cov(l_s, L) / (sd of l_s · sd of L), the last of which is the same for all tokens.
    of_sequence = -block["value"].values.sum(1) / tokens.train.std[rows] / whole
    np.testing.assert_allclose(of_sequence, of_sequence[0], rtol=1e-3)


def test_without_texts_a_token_is_called_by_its_position(run, tmp_path):
    (tmp_path / "step=000000007.h5").write_bytes((run[0] / "step=000000007.h5").read_bytes())
    of = told(files_of(tmp_path), "tokens", step=7, matrix="correlation", train=3, query=1)
    assert of["train"]["tokens"] == [f"#{place} " for place in range(1, len(run[2].tokens[3]))]
    assert np.shape(of["value"]) == (len(of["train"]["tokens"]), len(of["query"]["tokens"]))


def test_a_description_says_that_there_are_tokens(run):
    assert told(run[1], "description", step=7)["has"]["tokens"] is True
    assert json.loads(ask(run[1], "samples", side="train").body)["text_head"] is None


def test_what_there_is_not_is_refused(run):
    assert refused(run[1], "tokens", step=7, matrix="conditioned", train=0, query=0)[0] == 404
    assert refused(run[1], "tokens", step=7, matrix="correlation", train=9, query=0)[0] == 400
