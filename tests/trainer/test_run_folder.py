"""Each run has a folder of its own, with every logger; a run that goes on keeps it, and all ranks have the same."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from bif_lightning.trainer.run_folder import LogFolder, log_folder, own_folder
from media_loggers import Keeping, KnownToTheFirst
from strategy_run import launch
from tiny_run import Points, bif, fit

pytestmark = pytest.mark.trainer


def steps(folder: Path) -> list[int]:
    return [int(path.stem.split("=")[1]) for path in sorted(folder.glob("step=*.h5"))]


def trainer(*loggers: Any, root: Path = Path("root")) -> Any:
    return SimpleNamespace(loggers=loggers, default_root_dir=str(root))


@pytest.mark.parametrize(
    ("logger", "path", "versioned"),
    [
        (lambda folder: TensorBoardLogger(folder, "tb", version=3), "tb/version_3", True),
        (lambda folder: TensorBoardLogger(folder, "tb", version="x", sub_dir="s"), "tb/x/s", True),
        (lambda folder: CSVLogger(folder, "csv"), "csv/version_0", True),
        (lambda folder: Keeping(folder, "project", "run-1"), "project/run-1", True),
        (lambda folder: Keeping(folder, "project", 7), "project/version_7", True),
        (lambda folder: Keeping(None, "project", "run-1"), "root/project/run-1", True),
        (lambda folder: Keeping(folder, "", ""), "lightning_logs", False),
        (lambda folder: Keeping(folder, "project", None), "project", False),
    ],
)
def test_the_folder_of_the_first_logger(tmp_path: Path, logger: Any, path: str, versioned: bool) -> None:
    found = log_folder(trainer(logger(tmp_path), Keeping(tmp_path / "second"), root=tmp_path / "root"))
    assert found == LogFolder(tmp_path / path, versioned)


def test_without_a_logger_it_is_that_of_lightnings_default(tmp_path: Path) -> None:
    assert log_folder(trainer(root=tmp_path)) == LogFolder(tmp_path / "lightning_logs", versioned=False)


def test_a_logger_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log folder of the Trainer is s3://bucket.*as dirpath"):
        log_folder(trainer(Keeping(Path("s3://bucket"))))


def test_runs_that_start_at_the_same_time_get_different_versions(tmp_path: Path) -> None:
    logs = LogFolder(tmp_path / "logs", versioned=False)
    (tmp_path / "logs" / "version_3").mkdir(parents=True)
    (tmp_path / "logs" / "version_note").mkdir()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: own_folder(logs, "bif", former=None), range(16)))
    assert sorted(found) == sorted(logs.path / f"version_{number}" / "bif" for number in range(4, 20))


def test_a_version_that_is_used_gets_a_numbered_folder(tmp_path: Path) -> None:
    logs = LogFolder(tmp_path, versioned=True)
    assert own_folder(logs, "bif", former=None) == tmp_path / "bif"
    for taken in ("bif", "bif_1"):
        (tmp_path / taken).mkdir()
        (tmp_path / taken / "samples.h5").touch()
    with pytest.warns(UserWarning, match=r"bif holds another run; the dumps of this one go to .*bif_2"):
        assert own_folder(logs, "bif", former=None) == tmp_path / "bif_2"
    assert own_folder(logs, "bif", former=tmp_path / "bif_1") == tmp_path / "bif_1", "a run that goes on"


@pytest.mark.parametrize("versioned", [False, True])
def test_a_run_that_goes_on_keeps_its_folder_within_the_version(tmp_path: Path, versioned: bool) -> None:
    former, logs = tmp_path / "logs" / "version_0" / "bif", LogFolder(tmp_path / "logs", versioned=False)
    former.mkdir(parents=True)
    if versioned:
        assert own_folder(LogFolder(former.parent, versioned=True), "bif", former=former) == former
        logs = LogFolder(tmp_path / "logs" / "version_1", versioned=True)
        assert own_folder(logs, "bif", former=former) == logs.path / "bif", "a new version"
    else:
        assert own_folder(logs, "bif", former=former) == former
        assert own_folder(logs, "bif", former=tmp_path / "gone" / "bif") == logs.path / "version_1" / "bif"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("logger", "folders"),
    [
        (lambda folder: False, ["lightning_logs/version_0/bif", "lightning_logs/version_1/bif"]),
        (lambda folder: Keeping(folder, "", ""), ["lightning_logs/version_0/bif", "lightning_logs/version_1/bif"]),
        (lambda folder: Keeping(folder, version="same"), ["project/same/bif", "project/same/bif_1"]),
    ],
    ids=["no logger", "no version", "the same version"],
)
@pytest.mark.filterwarnings("ignore:.*holds another run")
def test_a_second_run_has_a_folder_of_its_own(tmp_path: Path, logger: Any, folders: list[str]) -> None:
    for folder in folders:
        callback = bif(tmp_path, dirpath=None)
        fit(tmp_path, [callback], logger=logger(tmp_path), default_root_dir=tmp_path)
        assert callback.directory == tmp_path / folder
        assert steps(tmp_path / folder) == [3, 6]


@pytest.mark.slow
def test_one_callback_in_two_runs(tmp_path: Path) -> None:
    """A cell of a notebook that makes another Trainer; the last step is that of the run before."""
    callback = bif(tmp_path, dirpath=None, at_start=True, every_n_epochs=2)
    for version in range(2):
        fit(tmp_path, [callback], logger=False, default_root_dir=tmp_path)
        assert steps(tmp_path / "lightning_logs" / f"version_{version}" / "bif") == [0, 6]


@pytest.mark.slow
def test_a_trainer_that_goes_on_keeps_the_folder(tmp_path: Path) -> None:
    callback = bif(tmp_path, dirpath=None)
    first, module = fit(tmp_path, [callback], logger=False, default_root_dir=tmp_path)
    first.fit_loop.max_epochs = 3
    first.fit(module, DataLoader(Points(), batch_size=8))
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
    assert steps(tmp_path / "lightning_logs" / "version_0" / "bif") == [3, 6, 9]


@pytest.mark.slow
@pytest.mark.parametrize("logger", [lambda folder: False, lambda folder: Keeping(folder, version="same")])
def test_a_resumed_run_finds_its_folder(tmp_path: Path, logger: Any) -> None:
    """With another run between, so that the next free folder is not the last one."""

    def run(epochs: int, **options: Any) -> Path:
        callback = bif(tmp_path, dirpath=None)
        keeps = ModelCheckpoint(tmp_path / f"{epochs}", save_top_k=-1)
        fit(
            tmp_path, [callback, keeps], logger=logger(tmp_path), default_root_dir=tmp_path, max_epochs=epochs,
            enable_checkpointing=True, **options,
        )  # fmt: skip
        assert callback.directory is not None
        return callback.directory

    first = run(1)
    (checkpoint,) = (tmp_path / "1").glob("*.ckpt")
    between = run(2)
    again = run(3, ckpt=checkpoint)
    assert again == first
    assert between != first
    assert (steps(first), steps(between)) == ([3, 6, 9], [3, 6])


@pytest.mark.slow
def test_a_resumed_run_of_a_new_version_has_a_new_folder(tmp_path: Path) -> None:
    keeps = ModelCheckpoint(tmp_path, filename="last", save_top_k=-1)
    given: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    fit(tmp_path, [bif(tmp_path, dirpath=None), keeps], max_epochs=1, logger=CSVLogger(tmp_path, "csv"), **given)
    callback = bif(tmp_path, dirpath=None)
    fit(tmp_path, [callback], logger=CSVLogger(tmp_path, "csv"), ckpt=tmp_path / "last.ckpt", **given)
    assert callback.directory == tmp_path / "csv" / "version_1" / "bif"
    assert steps(callback.directory) == [6]


@pytest.mark.slow
def test_two_callbacks_share_a_version(tmp_path: Path) -> None:
    both = [bif(tmp_path, dirpath=None, name=name) for name in ("one", "other")]
    fit(tmp_path, both, logger=False, default_root_dir=tmp_path)
    version = tmp_path / "lightning_logs" / "version_0"
    assert [each.directory for each in both] == [version / "one", version / "other"]


def test_a_development_run_makes_no_folder(tmp_path: Path) -> None:
    fit(tmp_path, [bif(tmp_path, dirpath=None)], logger=False, default_root_dir=tmp_path, fast_dev_run=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_stops_or_warns(tmp_path: Path) -> None:
    (tmp_path / "lightning_logs").write_text("in the way")
    given: dict[str, Any] = {"logger": False, "default_root_dir": tmp_path}
    with pytest.raises(OSError, match="lightning_logs"):
        fit(tmp_path, [bif(tmp_path, dirpath=None)], **given)
    with pytest.warns(UserWarning, match="no influence will be estimated"):
        done, _ = fit(tmp_path, [bif(tmp_path, dirpath=None, on_error="warn")], **given)
    assert done.global_step == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("logger", "folder"),
    [
        (lambda root: False, "lightning_logs/version_0/bif"),
        (lambda root: KnownToTheFirst(root, version="v"), "project/v/bif"),
    ],
    ids=["no logger", "only rank 0 knows the version"],
)
def test_all_ranks_have_the_folder_of_the_first(tmp_path: Path, logger: Any, folder: str) -> None:
    options = {"dirpath": None, "at_steps": [1], "at_end": False}
    given = {"max_steps": 1, "default_root_dir": str(tmp_path), "logger": logger(tmp_path)}
    left = launch(tmp_path / "ranks", 2, strategy="ddp", options=options, trainer=given, where=True)
    assert [one["directory"] for (one,) in left] == [str(tmp_path / folder)] * 2
    assert steps(tmp_path / folder) == [1]
    assert len(list((tmp_path / folder).parent.parent.iterdir())) == 1, "rank 1 made none"
