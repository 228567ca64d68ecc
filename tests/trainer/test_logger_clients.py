"""The clients of W&B, MLflow and Comet, offline: pictures and tables arrive, and a second run has its own folder.

The clients are no dependency: each test is skipped where its client is not installed.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, WandbLogger

from tiny_run import bif, fit

pytestmark = [pytest.mark.trainer, pytest.mark.slow, pytest.mark.timeout(900)]


def run_twice(folder: Path, logger: Any) -> list[Path]:
    """Folders of the dumps of two runs."""
    folders: list[Path] = []
    for _ in range(2):
        callback = bif(folder, dirpath=None)
        fit(folder, [callback], logger=logger(), default_root_dir=folder)
        assert callback.directory is not None
        assert sorted(path.name for path in callback.directory.glob("step=*.h5")) == [
            "step=000000003.h5", "step=000000006.h5",
        ]  # fmt: skip
        folders.append(callback.directory)
    assert folders[0] != folders[1]
    return folders


@pytest.mark.parametrize("finishes", [True, False], ids=["two runs", "one run that goes on"])
@pytest.mark.filterwarnings("ignore:.*(did not take|disturb|holds another run|already in progress)")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finishes: bool) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")

    def logger() -> WandbLogger:
        if finishes:
            wandb.finish()
        return WandbLogger(save_dir=tmp_path, project="project", offline=True)

    try:
        folders = run_twice(tmp_path, logger)
    finally:
        wandb.finish()
    assert all(folder.parent.parent == tmp_path / "project" for folder in folders)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 1 + finishes
    for run in runs:
        pictures = {path.parent.name for path in (run / "files" / "media" / "images" / "bif").rglob("*.png")}
        assert {"bif", "top_cards"} <= pictures
        names = {path.name.split("_")[0] for path in (run / "files" / "media" / "table" / "bif").glob("*.table.json")}
        assert names == {"verdict", "top", "ranking"}
        table = json.loads(next((run / "files" / "media" / "table" / "bif").glob("ranking_*.json")).read_text())
        assert len(table["data"]) == 12
        assert "mean_correlation" in table["columns"]


def test_mlflow_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    made: list[MLFlowLogger] = []

    def logger() -> MLFlowLogger:
        made.append(MLFlowLogger("name", save_dir=str(tmp_path / "mlruns")))
        return made[-1]

    folders = run_twice(tmp_path, logger)
    for each, folder in zip(made, folders, strict=True):
        assert folder == tmp_path / "mlruns" / str(each.name) / str(each.version) / "bif"
        client = each.experiment
        assert [each.name for each in client.search_experiments()] == ["name", "Default"], "no folder among them"
        assert len(client.get_metric_history(each.version, "bif/llc")) == 2
        pictures = [item.path for item in client.list_artifacts(each.version, "images")]
        for step in (3, 6):
            assert any(re.search(rf"heatmap.step.{step}.timestamp", path) for path in pictures)
        tables = [item.path for item in client.list_artifacts(each.version, "bif/ranking")]
        assert tables == [f"bif/ranking/step={step:09d}.json" for step in (3, 6)]


def test_comet_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("comet_ml", reason="comet_ml is not installed")
    monkeypatch.setenv("COMET_START_ONLINE", "0")  # with online=False, CometLogger makes an experiment that is disabled
    made: list[CometLogger] = []

    def logger() -> CometLogger:
        made.append(CometLogger(project="project", offline_directory=str(tmp_path / "comet")))
        return made[-1]

    folders = run_twice(tmp_path, logger)
    for each, folder in zip(made, folders, strict=True):
        assert folder == tmp_path / "comet" / "project" / str(each.version) / "bif"
        each.experiment.end()
        (archive,) = (tmp_path / "comet").glob(f"{each.version}*.zip")
        with zipfile.ZipFile(archive) as files:
            messages = files.read("messages.json").decode()
            contents = [files.read(name) for name in files.namelist()]
        for name in ("bif/heatmap", "bif/ranking/step=000000006.csv", "bif/llc"):
            assert name in messages
        assert any(content.startswith(b"step,train,") for content in contents), "the ranking"
