"""Files of every version that was ever released are read."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from bif_lightning.archive.read import by_label, integrated, open_run, open_samples, top
from bif_lightning.archive.read.tokens import open_tokens
from bif_lightning.archive.schema import VERSION

pytestmark = pytest.mark.exact

GOLDEN = sorted((Path(__file__).parent / "golden").iterdir())


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_golden_files_are_read(folder):
    expected = json.loads((folder / "expected.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = open_run(folder)
        train, query = open_samples(folder)
    assert whole.step.values.tolist() == expected.get("steps", [300])
    run = whole.sel(step=[300])
    np.testing.assert_allclose(run.influence.sel(step=300), expected["influence"], rtol=1e-7)
    np.testing.assert_allclose(run.correlation[0, :, 0], expected["correlation_of_query_0"], rtol=1e-7)
    np.testing.assert_allclose(run.accuracy_influence[0], expected["accuracy_influence"], rtol=1e-7)
    np.testing.assert_allclose(by_label(run)["mean"][0], expected["label_correlation"])
    np.testing.assert_allclose(run.loss_trace[0].dropna("chain"), expected["loss_trace"])
    assert run.metrics.sel(metric="val/loss").item() == 0.5
    assert list(train.ids) == expected["train_id"]
    assert list(query.texts) == expected["query_text"]
    assert train.thumbnails[0].startswith(b"\x89PNG")
    if "query_source" in expected:
        assert query.columns["source"].tolist() == expected["query_source"]
    if "token_correlation" in expected:
        found = open_tokens(folder / "step=000000300.h5").correlation()["value"]
        np.testing.assert_allclose(found, np.array(expected["token_correlation"], float), rtol=1e-6)
    if "conditioned" in expected:
        np.testing.assert_allclose(run.conditioned[0], expected["conditioned"], rtol=1e-7)
        np.testing.assert_allclose(run.accuracy_conditioned[0], expected["accuracy_conditioned"], rtol=1e-7)
        np.testing.assert_allclose(run.top_stability[0].dropna("query"), expected["top_stability"])
        assert {name: run[name].item() for name in expected["chains"]} == expected["chains"]
        assert run.verdict.item() == expected["verdict"]
    for name in ("influence_draws", "accuracy_influence_draws"):
        assert (name in run) == (name in expected)
        if name in expected:
            np.testing.assert_allclose(run[name][0], expected[name], rtol=1e-7)
    if "integrated" in expected:
        np.testing.assert_array_equal(whole.integrated, expected["integrated"])
        np.testing.assert_array_equal(integrated(whole).integrated, expected["integrated"])
    assert ("integrated" in whole) == ("integrated" in expected)
    best = top(whole, 0, k=1, step=300)
    assert best.value[0] == np.float32(np.min(np.array(expected["influence"])[:, 0]))
    assert best.label[0] in ("cat", "dog", "ünit")


def test_files_of_1_2_lack_what_1_3_added():
    run = open_run(GOLDEN[0].with_name("1.2"))
    assert np.isnan(run.group_agreement.item())


def test_files_of_1_0_lack_what_1_1_added():
    run = open_run(GOLDEN[0].with_name("1.0"))
    for name in ("conditioned", "accuracy_conditioned", "top_stability", "ridge", "effective_dimension"):
        assert name not in run
    for name in ("noise_ratio", "llc_ratio", "control_agreement"):
        assert np.isnan(run[name].item())
    assert (run.verdict.item(), run.verdict_reason.item()) == ("", "")
    with pytest.raises(ValueError, match="the run has no conditioned influence"):
        top(run, 0, by="conditioned")


def test_the_current_version_has_golden_files():
    assert VERSION in [folder.name for folder in GOLDEN]
    assert all(file.stat().st_size < 100_000 for folder in GOLDEN for file in folder.iterdir())
