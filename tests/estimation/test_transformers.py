"""Token by token influence of Hugging Face models, as they come: dict batches, ragged lengths, weights by name."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bif_lightning as bl
from bif_lightning.config import SGLD, Chains
from small_language import WORDS, padded, sequences

pytestmark = pytest.mark.exact

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra 'examples')")

SAMPLER = SGLD(step_size=1e-4, inverse_temperature=30.0, localization=300.0)
CHAINS = Chains(num_chains=2, num_draws=12, batch_size=4)


def gpt(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "Pythia":
        config = transformers.GPTNeoXConfig(
            vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16, use_cache=False,
        )  # fmt: skip
        return transformers.GPTNeoXForCausalLM(config)
    if kind == "GPT-2":
        config = transformers.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=16)
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Pythia", "GPT-2", "Llama"])
def test_influence_of_tokens(kind: str) -> None:
    model = gpt(kind).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = bl.estimate(
        model, bl.causal_lm_loss, sequences(6), sequences(3, 1),
        sampler=SAMPLER, chains=CHAINS, collate_fn=padded, per_token=True,
    )  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert found.tokens is not None
    for row, item in enumerate(sequences(6)):
        ids = item["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        alone = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
        rows = found.tokens.train.rows_of(row)
        np.testing.assert_allclose(found.tokens.train.snapshot_loss[rows], alone, rtol=1e-4, atol=1e-5)


def test_it_is_the_models_own_loss() -> None:
    model, batch = gpt("Pythia"), padded(sequences(5))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    losses, mask = bl.causal_lm_loss(model, transformers.BatchEncoding(batch | {"labels": labels}))
    own = model(**batch, labels=labels).loss
    torch.testing.assert_close(losses.sum() / mask.sum(), own)


@pytest.mark.slow
def test_weights_by_name() -> None:
    found = bl.estimate(
        gpt("Pythia"), bl.causal_lm_loss, sequences(6), sampler=SAMPLER, chains=CHAINS, collate_fn=padded,
        per_token=True, params=["*.attention.*", "*.mlp.*"],
    )  # fmt: skip
    assert all(".attention." in name or ".mlp." in name for name in found.parameters)
    assert any(".attention." in name for name in found.parameters)
    assert found.num_weights < sum(parameter.numel() for parameter in gpt("Pythia").parameters())


def test_bfloat16_stays_bfloat16() -> None:
    model = gpt("Pythia").bfloat16()
    found = bl.estimate(
        model, bl.causal_lm_loss, sequences(6), sampler=SAMPLER, chains=CHAINS, collate_fn=padded,
        per_token=True, params=["*.attention.*"],
    )  # fmt: skip
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert found.tokens is not None
    assert found.tokens.train.snapshot_loss.std() > 0
    assert np.isfinite(found.tokens.correlation().value).all()


def test_slopes_by_forward_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("differences instead of forward mode")

    monkeypatch.setattr("bif_lightning.curvature.token_slopes._losses", never)
    found = bl.estimate(
        gpt("Pythia"), bl.causal_lm_loss, sequences(6), sampler=bl.Subspace(num_directions=6),
        collate_fn=padded, per_token=True,
    )  # fmt: skip
    assert found.tokens is not None
    rows = found.tokens.train.sequence[:, None] == np.arange(6)
    model, slopes = found.tokens.blocks.model, found.tokens.blocks.train.whole()
    sums = -model.covariance(model.side(slopes @ rows), model.side(slopes @ rows))
    np.testing.assert_allclose(sums, found.influence, rtol=1e-2, atol=1e-3 * abs(sums).max())
