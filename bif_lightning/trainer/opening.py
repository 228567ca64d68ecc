"""The start of a fit: look at the data and the losses, make the folder, and refuse what belongs to another run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException

from bif_lightning.config import SGLD, Chains
from bif_lightning.describe import Describe
from bif_lightning.estimator import placement_of
from bif_lightning.problem import eagerly
from bif_lightning.shards import reshard
from bif_lightning.trainer.adapter import Request, attribution_of, data_of
from bif_lightning.trainer.guard import training_guard
from bif_lightning.trainer.outputs import Outputs, Precision, check_unused
from bif_lightning.trainer.session import Session, Verify, tiny


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user asked of the snapshots, beside what is attributed."""

    chains: Chains
    sampler: SGLD | Literal["auto"]
    describe: Describe | None
    precision: Precision
    views: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    store_traces: bool
    verify: Verify
    settings: Mapping[str, Any]


def open_session(
    trainer: Any,
    module: Any,
    request: Request,
    wanted: Wanted,
    directory: Path | None,
    *,
    fresh: bool,
    data: Mapping[str, str],
    settled: SGLD | None,
) -> Session:
    """A session for this fit. Collective.

    Args:
        directory: of the dumps; None writes nothing.
        fresh: the folder must be unused.
        data: fingerprints of the data in the run that is resumed; empty for a new run.
        settled: sampler settings of that run.

    Raises:
        MisconfigurationException: a folder of another run, other data than before, or losses that cannot be had.
        OSError: the folder cannot be written.
    """
    placement = placement_of(module)
    first = placement.rank == 0
    # On its own, since what follows may need all ranks, and the others do not look at the folder.
    with placement.together("looking at the folder"):
        if first and fresh and directory is not None:
            check_unused(directory)
    reshard(module)
    datasets = [request.train, request.query, *data_of(trainer)]
    with (
        placement.together("looking at the data and the losses"),
        training_guard(trainer, module, datasets),
        eagerly(),
    ):
        attribution = attribution_of(trainer, module, request)
        outputs = Outputs(
            directory=directory,
            attribution=attribution,
            describe=wanted.describe,
            precision=wanted.precision,
            views=() if trainer.fast_dev_run else wanted.views,
            pairs=wanted.pairs,
            settings={"settings": wanted.settings},
        )
        if data:
            check_same("data", data, outputs.fingerprints)
    with placement.together("making the folder"):
        if first:
            outputs.open()
    return Session(
        attribution=attribution,
        outputs=outputs,
        sampler=wanted.sampler,
        chains=tiny(wanted.chains) if trainer.fast_dev_run else wanted.chains,
        store_traces=wanted.store_traces,
        verify=wanted.verify,
        settled=settled,
    )


def check_same(what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings or data.

    Raises:
        MisconfigurationException: with each difference, then and now.
    """
    changed = [
        f"{name}: {theirs.get(name)!r} then, {ours.get(name)!r} now"
        for name in {**theirs, **ours}
        if theirs.get(name) != ours.get(name)
    ]
    if changed:
        raise MisconfigurationException(
            f"BIFCallback has other {what} than in the run that wrote this checkpoint, and their dumps would not "
            f"compare: {'; '.join(changed)}. Use the {what} of then, or a callback of another name"
        )


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a setting that is none of the choices.

    Raises:
        MisconfigurationException: it is another.
    """
    if value not in choices:
        raise MisconfigurationException(
            f"{name} is {value!r}; in this version it must be {' or '.join(map(repr, choices))}"
        )
