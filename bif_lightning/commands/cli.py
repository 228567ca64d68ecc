"""The command `bif-lightning`. A command is a function: its signature and docstring are its arguments and help."""

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from bif_lightning.commands.terminal import as_json

_ABOUT = """Bayesian influence of training examples on predictions, while a model trains.

A run is the folder that BIFCallback fills, beside the logger's files: one dump a snapshot, step=000006000.h5.

  bif-lightning show lightning_logs/version_0/bif              what is in a run, and can it be trusted?
  bif-lightning top lightning_logs/version_0/bif --query 3     which train examples help or hurt query 3?
  bif-lightning ranking lightning_logs/version_0/bif           which train examples hurt my queries, which help them?
  bif-lightning calibrate last.ckpt --config run.yaml          which sampler settings suit this model?
  bif-lightning attribute checkpoints --config run.yaml --train 0:1000 --query 1000:1100
                                                               influence at saved checkpoints, as such a run
  bif-lightning watch lightning_logs/version_0/bif --config run.yaml
                                                               dumps of the snapshots that a training leaves

The sign: influence is -Cov of losses over the draws, negative = more weight on the train example lowers the
query's loss = it helps. correlation is +Corr, in [-1, 1], positive = it helps.

eval "$(bif-lightning --print_completion shtab-bash)" completes commands and options in bash.
Exit status: 0 done, 1 the data or a checkpoint is broken or the disk is full, 2 wrong arguments or paths,
130 interrupted, 143 terminated. Progress goes to standard error; with --json, standard output is the answer alone."""


def show_run(run: str, *, step: int | None = None, legend: bool = False, json: bool = False) -> None:
    """Print what a run holds: its steps, how the chains did, and the influence of labels on labels.

    Args:
        run: folder of the dumps, or a single dump.
        step: global training step of the one snapshot to show; if not given all, of a long run 20 spread over it.
        legend: explain the columns and the signs.
        json: one JSON document instead of tables.
    """
    from bif_lightning.archive.read import open_run
    from bif_lightning.commands import report

    summary = report.summary(open_run(run), run, step)
    print(as_json(summary) if json else report.summary_text(summary, legend=legend))


def top_examples(
    run: str,
    *,
    query: str,
    step: int | None = None,
    k: int = 10,
    by: Literal["integrated", "influence", "correlation", "conditioned", "influence_draws"] | None = None,
    observable: str = "loss",
    json: bool = False,
) -> None:
    """Print the train examples that help a query most, then those that hurt it most.

    Args:
        run: folder of the dumps, or a single dump.
        query: row number or id of the query; digits mean a row number where one exists.
        step: global training step of one dump; if not given all of them, or the last where --by is of one snapshot.
        k: how many of each kind.
        by: integrated is the influence over the whole training, taken of five snapshots or more. Of one snapshot:
            influence ranks better than correlation, which compares better over steps; conditioned ranks best where the
            run has it; influence_draws is that of the chains of ControlledSGLD alone.
        observable: loss, or the name of a further observable of the run, which --query then names a column of.
        json: one JSON document instead of a table.
    """
    from bif_lightning.archive.read import open_run
    from bif_lightning.commands import report

    answer = report.extremes(open_run(run), query, k=k, step=step, by=by, observable=observable)
    print(as_json(answer) if json else report.extremes_text(answer))


def rank_examples(
    run: str,
    *,
    queries: str | None = None,
    step: int | None = None,
    k: int = 10,
    by: Literal["integrated", "influence", "correlation", "conditioned"] | None = None,
    observable: str = "loss",
    csv: str | None = None,
    ids: str | None = None,
    json: bool = False,
) -> None:
    """Print the train examples that hurt all or chosen queries most, then those that help them most.

    Args:
        run: folder of the dumps, or a single dump.
        queries: which, separated by commas: row numbers or ids, FIRST:LAST (LAST not included), label:NAME; all if not
            given.
        step: global training step of one dump; if not given all of them, or the last where --by is of one snapshot.
        k: how many of each kind.
        by: integrated is the influence over the whole training, taken of five snapshots or more; the others are of one
            snapshot.
        observable: loss, or the name of a further observable of the run, which --queries then names columns of.
        csv: write the whole table, all train examples, to this file.
        ids: write the ids of those that hurt to this file, one a line, without those that may be false (q above 0.05).
        json: one JSON document instead of a table.
    """
    from pathlib import Path

    from bif_lightning.archive.read import open_run
    from bif_lightning.commands import ranking

    answer, found = ranking.ranked(open_run(run), queries, k=k, step=step, by=by, observable=observable)
    if csv is not None:
        ranking.write_csv(Path(csv), answer, found)
    if ids is not None:
        answer["ids_written"] = ranking.write_ids(Path(ids), found)
    print(as_json(answer) if json else ranking.ranked_text(answer))
    for path in (each for each in (csv, ids) if each is not None and not json):
        print(f"\nWritten: {path}")


def calibrate_run(
    checkpoint: str,
    *,
    config: str | None = None,
    model: str | None = None,
    data: str | None = None,
    loss: str | None = None,
    params: Sequence[str] | None = None,
    out: str = "calibration",
    accelerator: str = "auto",
    json: bool = False,
) -> None:
    """Measure which sampler settings suit a checkpoint; write a page of loss traces, and YAML for BIFCallback.

    Args:
        checkpoint: Lightning checkpoint or state dict; read with weights_only=True.
        config: LightningCLI YAML; its `model` and `data` are used.
        model: import path of the LightningModule class, if no YAML gives it.
        data: import path of a LightningDataModule, DataLoader or dataset, or of a function that returns one.
        loss: import path of a function (module, batch) -> loss of each example; from training_step if not given.
        params: name patterns of the parameters to sample; all if not given.
        out: the files are <out>.png and <out>.yaml.
        accelerator: accelerator of the Trainer, such as cpu or gpu.
        json: one JSON document instead of text.
    """
    from bif_lightning.commands.calibrate import calibrate_checkpoint

    found, answer = calibrate_checkpoint(
        checkpoint, config=config, model=model, data=data, loss_fn=loss, params=params, out=out, accelerator=accelerator
    )
    print(as_json(answer) if json else f"{found}\nWritten: {', '.join(answer['files'])}")


def attribute_run(
    checkpoints: str,
    *,
    train: str,
    query: str | None = None,
    config: str | None = None,
    model: str | None = None,
    data: str | None = None,
    loss: str | None = None,
    params: Sequence[str] | None = None,
    settings: str | None = None,
    per_token: bool = False,
    out: str = "attribution/bif",
    accelerator: str = "auto",
    devices: str = "1",
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: str = "32-true",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Estimate influence at saved checkpoints: the dumps and TensorBoard views that BIFCallback writes in training.

    Existing dumps are kept, so the same command continues where it stopped. For several processes, start it with
    torchrun or srun, or give --devices and --strategy ddp.

    Args:
        checkpoints: a checkpoint, or a folder of them: Lightning's, state dicts (step=1000 in the name), sharded ones.
        train: rows of the training data as FIRST:LAST (LAST not included), or the import path of a dataset.
        query: likewise for the queries; train x train if not given.
        config: LightningCLI YAML; its `model` and `data` are used.
        model: import path of the LightningModule class, if no YAML gives it.
        data: import path of a LightningDataModule, DataLoader or dataset, or of a function that returns one.
        loss: import path of a function (module, batch) -> loss of each example; from training_step if not given.
        params: name patterns of the parameters to sample; all if not given.
        settings: YAML with `sampler` and `chains`, as `bif-lightning calibrate` writes it; the default if not given.
        per_token: losses of single tokens; needs --loss.
        out: folder of the dumps; point TensorBoard at its parent folder.
        accelerator: accelerator of the Trainer, such as cpu or gpu.
        devices: number of devices, or their indices, as in a Trainer.
        num_nodes: number of nodes, as in a Trainer.
        strategy: strategy of the Trainer, such as ddp.
        precision: precision of the training.
        dry_run: check the inputs, list the checkpoints, and forecast time and memory, without estimates or files.
        json: one JSON document instead of text.
    """
    from bif_lightning.commands.attribute import Machine, Sources, attribute_checkpoints

    done, answer = attribute_checkpoints(
        checkpoints,
        Sources(config=config, model=model, data=data, loss=loss, train=train, query=query),
        Machine(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy, precision=precision),
        params=params, settings=settings, per_token=per_token, out=out, dry_run=dry_run,
    )  # fmt: skip
    _show_attributed(done, answer, json)


def watch_run(
    run: str,
    *,
    config: str | None = None,
    model: str | None = None,
    data: str | None = None,
    train: str | None = None,
    query: str | None = None,
    loss: str | None = None,
    idle: float | None = None,
    accelerator: str = "auto",
    devices: str = "1",
    strategy: str = "auto",
    precision: str = "32-true",
    json: bool = False,
) -> None:
    """Turn the snapshots of BIFCallback(launch="snapshot") into dumps as they appear, until training ends.

    Start one for each spare device, on any machine that sees the folder; they share the work.

    Args:
        run: folder of the callback, which contains the snapshots and receives the dumps.
        config: LightningCLI YAML; its `model` and `data` are used.
        model: import path of the LightningModule class, if no YAML gives it.
        data: import path of a LightningDataModule, DataLoader or dataset, or of a function that returns one.
        train: import path of the dataset that the callback was given; not needed if it was given rows.
        query: likewise for the queries.
        loss: import path of the loss_fn that the callback was given.
        idle: stop after this many seconds without work; at the end of the training if not given.
        accelerator: accelerator of the Trainer, such as cpu or gpu.
        devices: number of devices, or their indices, as in a Trainer.
        strategy: strategy of the Trainer, such as ddp.
        precision: precision of the training.
        json: one JSON document instead of text.
    """
    from bif_lightning.commands.attribute import Machine, Sources, watch_snapshots

    sources = Sources(config=config, model=model, data=data, loss=loss, train=train, query=query)
    machine = Machine(accelerator=accelerator, devices=devices, num_nodes=1, strategy=strategy, precision=precision)
    done, answer = watch_snapshots(run, sources, machine, idle=idle)
    _show_attributed(done, answer, json)


def _show_attributed(done: Any, answer: Mapping[str, Any] | None, json: bool) -> None:
    if answer is not None:  # one process speaks for all
        print(as_json(answer) if json else str(done))
    if done.failed:
        raise IncompleteError(f"{len(done.failed)} checkpoints have no dump: {', '.join(done.failed)}")


class IncompleteError(Exception):
    """A command did what it could, and that was not all."""


# No function is called as something in bif_lightning/__init__.pyi: jsonargparse would look that up, and import it.
_COMMANDS: Mapping[str, Callable[..., None]] = {
    "show": show_run,
    "top": top_examples,
    "ranking": rank_examples,
    "calibrate": calibrate_run,
    "attribute": attribute_run,
    "watch": watch_run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; `arguments` are those of the process if not given."""
    chosen = _parser().parse_args([_spelled(each) for each in (sys.argv[1:] if arguments is None else arguments)])
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            _COMMANDS[chosen.subcommand](**chosen[chosen.subcommand].as_dict())
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader of the pipe left, as `head` does; at exit Python would flush into it again and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + 13
        except KeyboardInterrupt:
            return 128 + 2
        except (OSError, ValueError, IncompleteError) as error:
            print(f"bif-lightning: error: {_one_line(error)}", file=sys.stderr)
            return _status(error)
    return 0


def _parser() -> Any:
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    # Versions of jsonargparse before 4.47 print no completion for shells.
    if "add_print_completion_argument" in inspect.signature(set_parsing_settings).parameters:
        set_parsing_settings(add_print_completion_argument=True)

    class Layout(DefaultHelpFormatter):
        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return text  # the description is laid out by hand

    parser = ArgumentParser(prog="bif-lightning", description=_ABOUT, formatter_class=Layout, version=_version())
    subcommands = parser.add_subcommands(title="commands", description="bif-lightning COMMAND --help says more.")
    for name, command in _COMMANDS.items():
        about = (inspect.getdoc(command) or "").partition("\n")[0]
        sub = ArgumentParser(description=about)
        parameters = inspect.signature(command).parameters
        options = {key for key, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
        flags = [key for key, each in parameters.items() if each.annotation is bool]
        letters = [key for key in options if len(key) == 1]
        sub.add_function_arguments(command, as_group=False, as_positional=True, skip=set[str | int](options))
        sub.add_function_arguments(command, as_group=False, skip={*flags, *letters, *(parameters.keys() - options)})
        for key in letters:
            of = parameters[key]
            sub.add_argument(f"-{key}", f"--{key}", type=of.annotation, default=of.default, help=_about(command, key))
        for flag in flags:
            spellings = dict.fromkeys((f"--{flag.replace('_', '-')}", f"--{flag}"))  # as other options are written, too
            sub.add_argument(*spellings, action="store_true", help=_about(command, flag))
        subcommands.add_subcommand(name, sub, help=about)
    return parser


def _version() -> str:
    try:
        return version("bif-lightning")
    except PackageNotFoundError:  # run from a folder that was not installed
        return "unknown"


def _spelled(given: str) -> str:
    """`--num-nodes` as the parser knows it, `--num_nodes`."""
    return re.sub("^--[a-z-]+", lambda name: "--" + name[0][2:].replace("-", "_"), given)


def _about(command: Callable[..., None], argument: str) -> str:
    """What the docstring says of an argument."""
    words = re.search(rf"^ +{argument}: (.*)$", command.__doc__ or "", re.MULTILINE)
    return "" if words is None else words.group(1)


def _status(error: Exception) -> int:
    from bif_lightning.exceptions import UnreadableFileError

    paths = isinstance(error, FileNotFoundError | FileExistsError | NotADirectoryError | PermissionError)
    arguments = isinstance(error, ValueError) and not isinstance(error, UnreadableFileError)
    return 2 if paths or arguments else 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"bif-lightning: warning: {' '.join(str(message).split())}", file=sys.stderr)
