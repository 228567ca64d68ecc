"""The list of runs that the page starts from: what the scan found, and a description of each dump."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock, Thread
from typing import Any

from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.protocol import Question
from bif_lightning.tensorboard.plugin.readers import Readers
from bif_lightning.tensorboard.plugin.scan import Run

_BATCH = 25
_SECONDS = 0.03  # for each run, and one question at least
_MOST_SECONDS = 1.0  # for all runs
_PAUSE = 1.0  # leaves the readers to the page's first questions
_EMPTY = {
    "num_train": 0, "num_query": 0, "matrices": [], "observables": [], "own_columns": [], "kind": "unknown",
    "parameters_text": "unknown", "sort_columns": {"train": [], "query": []}, "has": {},
}  # fmt: skip


class Catalogue:
    """Caches the description of each dump, so that a new list reads only new dumps.

    Args:
        readers: the reader processes.
    """

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._lines: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._descriptions: dict[tuple[str, str, str], Mapping[str, Any]] = {}
        self._careful: set[str] = set()
        self._lock, self._filling = Lock(), Lock()

    def listed(self, runs: Mapping[str, Run]) -> dict[str, Any]:
        """The answer to `runs`. Dumps that are slow to read get their verdict later: they are read after the answer."""
        with self._lock:
            now = time.monotonic()
            notes = [] if runs else ["No influence dumps yet: they appear here once BIFCallback has taken a snapshot."]
            found = [self._run(run, now) for run in runs.values()]
            self._forget(runs)
            late = [run for run in runs.values() if self._missing(run)]
            if late and not self._filling.locked():
                Thread(target=self._fill, args=(late,), daemon=True).start()
        return {"runs": found, "notes": notes}

    def prepare(self, run: Run) -> None:
        """Read the latest dumps of a run and its examples before the page asks for them."""
        with self._lock:
            self._run(run, time.monotonic())

    def _fill(self, runs: Sequence[Run]) -> None:
        with self._filling:
            time.sleep(_PAUSE)
            for run in runs:
                self._read_lines(run, math.inf)

    def verdicts(self, run: Run) -> dict[int, str | None]:
        """The verdict of each step that was read."""
        return {step: self._line(run, step).get("verdict") for step in run.dumps}

    def trouble(self, run: Run, step: int) -> str | None:
        """Why the dump of a step cannot be read, if that is known; no reader then tries again."""
        return self._line(run, step).get("why") if step in run.dumps else None

    def _line(self, run: Run, step: int) -> Mapping[str, Any]:
        return self._lines.get((str(run.folder), run.dumps[step].token), {})

    def _run(self, run: Run, started: float) -> dict[str, Any]:
        # Once the newest is known, the others are read after the answer.
        unseen = run.dumps and not self._line(run, max(run.dumps))
        if unseen and time.monotonic() < started + _MOST_SECONDS:
            self._read_lines(run, started + _SECONDS)
        lines = {step: self._line(run, step) for step in run.dumps}
        good = [step for step in run.dumps if "why" not in lines[step]]
        problems = [{"file": run.dumps[step].name, "why": lines[step]["why"]} for step in run.dumps if step not in good]
        problems += [{"file": name, "why": "it is not a regular file, so it is not opened"} for name in run.odd]
        steps = [{"step": step, "token": run.dumps[step].token, **_shown(lines[step])} for step in good]
        described = self._description(run, [step for step in good if lines[step]])
        if why := described.get("why"):
            problems.append({"file": "samples.h5", "why": why})
        return {
            "run": run.name,
            "path": run.name,
            "written": run.written,
            **{name: described.get(name, default) for name, default in _EMPTY.items()},
            "steps": steps,
            "samples_token": run.samples_token,
            "integrated_token": run.integrated_token,
            "problems": problems,
        }

    def _read_lines(self, run: Run, end: float) -> None:
        """Read dumps, the latest first, until the clock passes `end`; at least one batch."""
        missing = self._missing(run)
        while missing:
            folder = str(run.folder)
            batch = missing[: 1 if folder in self._careful else _BATCH]
            answer = self._readers.ask(Question("dump_lines", run.files(batch), Parameters({})))
            if "Retry-After" in answer.headers:
                return
            value = json.loads(answer.body)
            if answer.status == 200:
                self._keep(run, value["lines"])
            elif folder in self._careful:
                self._keep(run, [{"step": batch[0], "why": value["error"]}])
            else:
                # One of them hangs or crashes a reader: read one by one, it does not hide the others.
                self._careful.add(folder)
                batch = []
            missing = missing[len(batch) :]
            if time.monotonic() > end:
                return

    def _missing(self, run: Run) -> list[int]:
        """Steps that were not read yet, the latest first, which the page shows first."""
        return [step for step in reversed(list(run.dumps)) if not self._line(run, step)]

    def _keep(self, run: Run, lines: Iterable[Mapping[str, Any]]) -> None:
        for line in lines:
            self._lines[str(run.folder), run.dumps[line["step"]].token] = line

    def _description(self, run: Run, good: list[int]) -> Mapping[str, Any]:
        """Description of the last dump that was read."""
        if not good:
            return {}
        key = (str(run.folder), run.dumps[good[-1]].token, run.samples_token)
        if key not in self._descriptions:
            answer = self._readers.ask(
                Question("description", run.files(good[-1:]), Parameters({"step": str(good[-1])}))
            )
            value = json.loads(answer.body)
            if answer.status == 503:
                return {"why": value["error"]}
            self._descriptions[key] = value if answer.status == 200 else {"why": value["error"]}
        return self._descriptions[key]

    def _forget(self, runs: Mapping[str, Run]) -> None:
        """Drop entries of files that were replaced or removed."""
        tokens = {(str(run.folder), dump.token) for run in runs.values() for dump in run.dumps.values()}
        self._lines = {key: line for key, line in self._lines.items() if key in tokens}
        self._descriptions = {key: value for key, value in self._descriptions.items() if key[:2] in tokens}


def _shown(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: line.get(name) for name in ("epoch", "verdict", "verdict_text", "created")}
