"""LightningCLI makes the callback from YAML, prints the configuration, and takes what it printed."""

from pathlib import Path

import pytest
import yaml

import bif_lightning as bl
import cli_app
from forked import as_main, start

pytestmark = pytest.mark.trainer

BY_OBJECTS = """
train: {class_path: cli_app.Points, init_args: {size: 9, seed: 2}}
query: {class_path: cli_app.Points, init_args: {size: 4, seed: 3}}
every_n_train_steps: 2
chains: {num_chains: 2, num_draws: 3, batch_size: 8}
sampler: {step_size: 1.0e-4, inverse_temperature: 100.0, localization: 10.0}
loss_fn: cli_app.losses
params: net.2.*
observables:
- {class_path: bif_lightning.PerExample, init_args: {name: margin, function: cli_app.margin}}
"""

BY_CLASS_PATH = """
train: [0, 3, 6, 9, 12]
query: [1, 2]
at_steps: [1, 4]
at_end: false
chains: {class_path: bif_lightning.Chains, init_args: {num_chains: 2, num_draws: 3}}
sampler: {class_path: bif_lightning.SGLD, init_args: {step_size: 1.0e-4, inverse_temperature: 1.0, localization: 1.0}}
params: [net.0.weight, net.2.*]
"""

DEFAULTS = """
train: [0, 3, 6, 9, 12]
chains: {num_chains: 2, num_draws: 3}
"""


def run(folder: Path, *arguments: str) -> str:
    """`cli_app.py fit`, in a process of its own; what it printed."""
    out, errors = (folder / name for name in ("out.txt", "errors.txt"))
    for path in (out, errors):
        path.write_text("")
    process = start(as_main, cli_app.__file__, ["fit", *arguments], folder, {1: str(out), 2: str(errors)})
    process.join(250)
    assert process.exitcode == 0, errors.read_text()[-3000:]
    return out.read_text()


def config(folder: Path, init_args: str) -> Path:
    """A YAML file with this callback."""
    trainer = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False}
    path = folder / "run.yaml"
    callback = {"class_path": "bif_lightning.BIFCallback"}
    callback["init_args"] = yaml.safe_load(init_args) | {"dirpath": str(folder / "bif")}
    path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": trainer | {"callbacks": [callback]}}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("init_args", "steps", "rows"),
    [(BY_OBJECTS, [2, 4, 6], 9), (BY_CLASS_PATH, [1, 4], 5), (DEFAULTS, [1, 2, 3, 5, 6], 5)],
    ids=["objects", "class paths", "defaults"],
)
def test_a_configuration_prints_itself_and_fits(tmp_path: Path, init_args: str, steps: list[int], rows: int) -> None:
    given = config(tmp_path, init_args)
    printed = tmp_path / "printed.yaml"
    printed.write_text(run(tmp_path, "--config", str(given), "--print_config"))
    again = run(tmp_path, "--config", str(printed), "--print_config")
    assert yaml.safe_load(again) == yaml.safe_load(printed.read_text())
    run(tmp_path, "--config", str(printed))
    dumps = bl.open_run(tmp_path / "bif")
    assert dumps.step.values.tolist() == steps
    assert dumps.sizes["train"] == rows
