"""Writes the golden files of the current schema version: run once, when a version is new, and never again.

    python tests/helpers/make_golden.py

Files of earlier versions stay as they are; every later reader must read them.
"""

import json
from pathlib import Path

import numpy as np

from archive_examples import make_estimate, make_full
from bif_lightning.archive.read import integrated, open_run
from bif_lightning.archive.read.tokens import open_tokens
from bif_lightning.archive.schema import VERSION
from bif_lightning.archive.write import write_dump, write_integrated, write_samples
from bif_lightning.sampling.choice import judge


def token_correlation(folder: Path) -> list[list[float | None]]:
    """Of all tokens; None where a loss never varied."""
    values = open_tokens(folder / "step=000000300.h5").correlation()["value"].values
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]


def main() -> None:
    folder = Path(__file__).parents[1] / "archive" / "golden" / VERSION
    if folder.exists():
        raise SystemExit(f"{folder} exists; golden files are never rewritten")
    rng = np.random.default_rng(0)
    train, query, estimate = make_full(rng)
    write_samples(folder, train, query)
    write_dump(folder, estimate, step=300, epoch=2, train=train, query=query, metrics={"val/loss": 0.5})
    write_dump(folder, make_estimate(rng, len(train), len(query)), step=400, epoch=3, train=train, query=query)
    whole = integrated(open_run(folder)).integrated.values
    write_integrated(folder)
    expected = {
        "steps": [300, 400],
        "integrated": whole.tolist(),
        "influence": estimate.influence.tolist(),
        "correlation_of_query_0": estimate.correlation[:, 0].tolist(),
        "conditioned": estimate.conditioned.tolist(),
        "accuracy_conditioned": estimate.observables["accuracy"].conditioned.tolist(),
        "influence_draws": estimate.influence_draws.tolist(),
        "accuracy_influence_draws": estimate.observables["accuracy"].influence_draws.tolist(),
        "top_stability": [value for value in estimate.top_stability.tolist() if value == value],
        "chains": {
            "ridge": estimate.ridge,
            "effective_dimension": estimate.effective_dimension,
            "noise_ratio": estimate.diagnostics.noise_ratio,
            "llc_ratio": estimate.diagnostics.llc_ratio,
            "group_agreement": estimate.diagnostics.group_agreement,
            "control_agreement": estimate.diagnostics.control_agreement,
        },
        "verdict": judge(estimate).word,
        "token_correlation": token_correlation(folder),
        "accuracy_influence": estimate.observables["accuracy"].influence.tolist(),
        "label_correlation": estimate.label_means.correlation.tolist(),
        "loss_trace": estimate.loss_trace.tolist(),
        "train_id": list(train.ids),
        "query_text": list(query.texts),
        "query_source": query.columns["source"].tolist(),
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
