"""The command `bif-lightning`. A command is a function: its signature and docstring are its arguments and help."""

import inspect
import json as json_format
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

_ABOUT = """Bayesian influence of training examples on predictions, while a model trains.

A run is the folder that BIFCallback fills, by default <log_dir>/bif: one dump a snapshot, step=000006000.h5.

  bif-lightning show lightning_logs/version_0/bif              what is in a run, and can it be trusted?
  bif-lightning top lightning_logs/version_0/bif --query 3     which train examples help or hurt query 3?
  bif-lightning calibrate last.ckpt --config run.yaml          which sampler settings suit this model?

The sign: influence is -Cov of losses over the draws, negative = more weight on the train example lowers the
query's loss = it helps. correlation is +Corr, in [-1, 1], positive = it helps.

Exit status: 0 done, 1 the data is broken, 2 wrong arguments or paths."""


def show_run(run: str, *, json: bool = False) -> None:
    """Print what a run holds: its steps, how the chains did, and the influence of labels on labels.

    Args:
        run: folder of the dumps, or a single dump.
        json: one JSON document instead of tables.
    """
    from bif_lightning import report
    from bif_lightning.archive.read import open_run

    summary = report.summary(open_run(run), run)
    print(_as_json(summary) if json else report.summary_text(summary))


def top_examples(
    run: str,
    *,
    query: str,
    step: int | None = None,
    k: int = 10,
    by: Literal["influence", "correlation", "conditioned"] = "influence",
    observable: str = "loss",
    json: bool = False,
) -> None:
    """Print the train examples that help a query most, then those that hurt it most.

    Args:
        run: folder of the dumps, or a single dump.
        query: row number of the query, or its id where that is no row number.
        step: global training step of the dump; the last one if not given.
        k: how many of each kind.
        by: influence ranks better than correlation, which compares better over steps; conditioned ranks best of all
            where the run has it.
        observable: loss, or the name of a further observable of the run, which --query then names a column of.
        json: one JSON document instead of a table.
    """
    from bif_lightning import report
    from bif_lightning.archive.read import open_run

    answer = report.extremes(open_run(run), query, k=k, step=step, by=by, observable=observable)
    print(_as_json(answer) if json else report.extremes_text(answer))


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
        checkpoint: of Lightning, or a state dict; read with weights_only=True.
        config: LightningCLI YAML, of which `model` and `data` are used.
        model: import path of the LightningModule class, where no YAML says it.
        data: import path of a LightningDataModule, DataLoader or dataset, or of a function that returns one.
        loss: import path of a function (module, batch) -> loss of each example; from training_step if not given.
        params: name patterns of the parameters to sample; all if not given.
        out: the files are <out>.png and <out>.yaml.
        accelerator: cpu, gpu, ... as of a Trainer.
        json: one JSON document instead of text.
    """
    from bif_lightning.calibrating import calibrate_checkpoint

    found, answer = calibrate_checkpoint(
        checkpoint, config=config, model=model, data=data, loss_fn=loss, params=params, out=out, accelerator=accelerator
    )
    print(_as_json(answer) if json else f"{found}\nWritten: {', '.join(answer['files'])}")


# No function is called as something in bif_lightning/__init__.pyi: jsonargparse would look that up, and import it.
_COMMANDS: Mapping[str, Callable[..., None]] = {"show": show_run, "top": top_examples, "calibrate": calibrate_run}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; `arguments` are those of the process if not given."""
    chosen = _parser().parse_args(arguments)
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
        except (OSError, ValueError) as error:
            print(f"bif-lightning: error: {_one_line(error)}", file=sys.stderr)
            return _status(error)
    return 0


def _parser() -> Any:
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Layout(DefaultHelpFormatter):
        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return text  # the description is laid out by hand

    parser = ArgumentParser(prog="bif-lightning", description=_ABOUT, formatter_class=Layout)
    subcommands = parser.add_subcommands(title="commands", description="bif-lightning COMMAND --help says more.")
    for name, command in _COMMANDS.items():
        about = (inspect.getdoc(command) or "").partition("\n")[0]
        sub = ArgumentParser(description=about)
        parameters = inspect.signature(command).parameters
        options: set[str | int] = {key for key, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
        sub.add_function_arguments(command, as_group=False, as_positional=True, skip=options)
        sub.add_function_arguments(command, as_group=False, skip={"json", *(parameters.keys() - options)})
        if "json" in options:
            sub.add_argument("--json", action="store_true", help="one JSON document instead of text")
        subcommands.add_subcommand(name, sub, help=about)
    return parser


def _status(error: Exception) -> int:
    from bif_lightning.archive.read import UnreadableFileError

    paths = isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
    arguments = isinstance(error, ValueError) and not isinstance(error, UnreadableFileError)
    return 2 if paths or arguments else 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"bif-lightning: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _as_json(value: object) -> str:
    return json_format.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: None stands for both."""
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
