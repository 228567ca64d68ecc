"""Setup at the start of a fit: derive the losses, describe the data, open the folder, and check for earlier runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException

from bif_lightning.config import Chains, Sampler, check_sampler
from bif_lightning.data.describe import Describe
from bif_lightning.data.rows import rows_of
from bif_lightning.data.token_texts import Decoder
from bif_lightning.losses.problem import disable_compile
from bif_lightning.model.sharded import reshard
from bif_lightning.results.settings import ResolvedSettings, encode
from bif_lightning.sampling.choice import default_settings
from bif_lightning.sampling.context import ranks_of
from bif_lightning.trainer.guard.guard import training_guard
from bif_lightning.trainer.outputs import Outputs, Precision, check_unused
from bif_lightning.trainer.problem import Attribution, AttributionRequest, attribution_of, data_of
from bif_lightning.trainer.session import Session, Verify
from bif_lightning.trainer.snapshot_files import RunManifest, check_no_snapshots, reopen
from bif_lightning.trainer.time_budget import TimeBudget


@dataclass(frozen=True, kw_only=True)
class SnapshotOptions:
    """The user's settings of the snapshots, in addition to the `AttributionRequest`."""

    chains: Chains | None
    sampler: Sampler | Literal["auto"] | None
    describe: Describe | None
    tokenizer: Decoder | None
    precision: Precision
    views: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    store_traces: bool
    verify: Verify
    settings: Mapping[str, Any]
    budget: TimeBudget
    launch: Literal["inline", "snapshot"] = "inline"


def settings_of(
    request: AttributionRequest, sampler: Sampler | Literal["auto"] | None, chains: Chains | None, budget: float | None
) -> dict[str, Any]:
    """The settings that all snapshots of a run share, as plain values.

    Raises:
        ValueError: the sampler is not a sampler of this package.
    """
    check_sampler(sampler)
    return {
        "sampler": sampler if sampler is None or sampler == "auto" else encode(sampler),
        "chains": None if chains is None else asdict(chains),
        "budget": budget,
        "params": list(request.params or ()),
        "per_sample": request.per_sample,
        "loss_fn": request.loss_fn is not None,
    } | ({"per_token": True} if request.per_token else {})


def open_session(
    trainer: Any,
    module: Any,
    request: AttributionRequest,
    options: SnapshotOptions,
    directory: Path | None,
    *,
    fresh: bool,
    data: Mapping[str, str],
    resolved: ResolvedSettings | None,
) -> Session:
    """Open a session for this fit. Collective.

    Args:
        directory: folder of the dumps; None writes nothing.
        fresh: whether the folder must be unused.
        data: fingerprints of the data of a resumed run; empty for a new run.
        resolved: sampler and chains found in a resumed run; None for a new run.

    Raises:
        MisconfigurationException: the folder belongs to another run, the data changed, or losses cannot be derived.
        OSError: the folder cannot be written.
    """
    ranks = ranks_of(module)
    first = ranks.rank == 0
    # A separate section, since only rank 0 reads the folder.
    with ranks.collective("looking at the folder"):
        if first and fresh and directory is not None:
            check_unused(directory)
            if options.launch == "snapshot":
                check_no_snapshots(directory)
    reshard(module)
    datasets = [request.train, request.query, request.training_data, *data_of(trainer)]
    with (
        ranks.collective("looking at the data and the losses"),
        training_guard(trainer, module, datasets),
        disable_compile(),
    ):
        attribution = attribution_of(trainer, module, request)
        outputs = Outputs(
            directory=directory,
            attribution=attribution,
            describe=options.describe,
            tokenizer=options.tokenizer,
            precision=options.precision,
            views=() if trainer.fast_dev_run else options.views,
            pairs=options.pairs,
            settings={"settings": options.settings},
        )
        if data:
            check_same("data", data, outputs.fingerprints)
    with ranks.collective("making the folder"):
        if first:
            outputs.open()
            if options.launch == "snapshot" and directory is not None:
                reopen(directory)
                _manifest(request, options, outputs).write(directory)
    chains = _tiny(options.chains or Chains()) if trainer.fast_dev_run else options.chains
    return Session(
        attribution=attribution,
        outputs=outputs,
        sampler=_sampler(attribution, options),
        chains=chains,
        store_traces=options.store_traces,
        verify=options.verify,
        resolved=resolved,
        budget=options.budget,
        launch=options.launch,
    )


def _manifest(request: AttributionRequest, options: SnapshotOptions, outputs: Outputs) -> RunManifest:
    stored = {
        "per_sample": request.per_sample,
        "eval_batch_size": request.eval_batch_size,
        "per_token": request.per_token,
        "allow_untested": not request.check_gradient,
        "precision": options.precision,
        "store_traces": options.store_traces,
        "views": list(options.views),
        "pairs": [list(pair) for pair in options.pairs],
        "training_data": _rows(request.training_data),
    }
    return RunManifest(options.settings, outputs.fingerprints, _rows(request.train), _rows(request.query), stored)


def _rows(data: Any) -> list[int] | None:
    found = None if data is None else rows_of(data)
    return None if found is None else list(found.indices)


def _sampler(attribution: Attribution, options: SnapshotOptions) -> Sampler | Literal["auto"]:
    return default_settings(attribution.problem) if options.sampler is None else options.sampler


def _tiny(chains: Chains) -> Chains:
    """The smallest chains, for a fast_dev_run."""
    return replace(chains, num_chains=1, num_draws=2, burn_in=0, thinning=1)


def check_same(what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Check that settings or data are those of the run to continue.

    Raises:
        MisconfigurationException: they differ; the message has each old and new value.
    """
    changed = [
        f"{name}: {theirs.get(name)!r} then, {ours.get(name)!r} now"
        for name in {**theirs, **ours}
        if theirs.get(name) != ours.get(name)
    ]
    if changed:
        raise MisconfigurationException(
            f"BIFCallback has other {what} than in the run that wrote this checkpoint, so their dumps could not be "
            f"compared: {'; '.join(changed)}. Use the {what} of that run, or give the callback another name"
        )


def check_options(
    *,
    on_error: str,
    verify_restore: str,
    precision: str,
    launch: str,
    per_token: bool,
    per_sample: str,
    own_loss: bool,
    limited: bool = False,
) -> None:
    """Check options and their combination.

    Raises:
        MisconfigurationException: one is unknown, or two contradict.
    """
    check_choice("on_error", on_error, ("raise", "warn"))
    check_choice("verify_restore", verify_restore, ("first", "always", "never"))
    check_choice("precision", precision, ("full", "10bit"))
    check_choice("launch", launch, ("inline", "snapshot"))
    check_choice("per_token", per_token, (False, True))
    check_choice("per_sample", per_sample, ("mean", "sum"))
    if per_token and not own_loss:
        raise MisconfigurationException(
            "per_token=True needs token losses, which training_step does not return: pass a loss_fn, "
            "(module, batch) -> losses [batch, token], or (losses, mask). For a causal language model "
            "bif_lightning.causal_lm_loss is one, or lambda module, batch: causal_lm_loss(module.model, batch) where "
            "the LightningModule has the model as an attribute"
        )
    if limited and launch == "snapshot":
        raise MisconfigurationException(
            "budget limits the time that estimates take from training, but launch='snapshot' moves them to other "
            "processes: leave the budget out"
        )
    if own_loss and per_sample != "mean":
        raise MisconfigurationException(
            "per_sample='sum' applies to losses derived from training_step, but a loss_fn is given: return the loss of "
            "each example from it, and leave per_sample out"
        )


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Check that a setting is one of the choices.

    Raises:
        MisconfigurationException: it is not.
    """
    if value not in choices:
        raise MisconfigurationException(
            f"{name} is {value!r}; in this version it must be {' or '.join(map(repr, choices))}"
        )
