"""Rankings that were computed, kept as long as their dumps stay the same, and handed out in pages."""

import time
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
from cachetools import LRUCache

from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_json, as_numbers
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.protocol import Question
from bif_lightning.tensorboard.plugin.ranking import COLUMNS
from bif_lightning.tensorboard.plugin.readers import Readers
from bif_lightning.tensorboard.plugin.scan import Run

MOST_ROWS = 1 << 16
"""Train examples in one page."""

_MOST_BYTES = 64 << 20
_SECONDS = 1.0  # for steps that nobody asked for before, in one answer
_QUESTION = ("matrix", "over", "queries")

Key = tuple[str, str, str, tuple[str, ...]]


class Rankings:
    """Asks the readers, and keeps their answers.

    Args:
        readers: the reader processes.
    """

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._kept: LRUCache[Key, Answer] = LRUCache(_MOST_BYTES, getsizeof=lambda answer: len(answer.body) + 500)
        self._lock = Lock()

    def rows(self, run: Run, parameters: Parameters) -> Answer:
        """The columns of rows r0 to r1 of the train examples, in the order of the dataset, and their number.

        Raises:
            RefusedError: 400, a page of more than 65,536 rows.
        """
        step = parameters.number("step", 0, 10**15)
        if step not in run.dumps:
            raise RefusedError(404, f"This run has no dump of step {step}; reload the list of runs.")
        # A sum over the training changes with every dump.
        whole = parameters.values.get("over") == "training"
        tokens = [dump.token for dump in run.dumps.values()] if whole else []
        answer = self._answer("ranking", run, step, parameters, " ".join([*tokens, run.integrated_token] * whole))
        if answer.status != 200:
            return answer
        columns = np.frombuffer(answer.body, np.float32).reshape(len(COLUMNS), -1)
        total = columns.shape[1]
        first = parameters.number("r0", 0, max(total - 1, 0), 0)
        last = parameters.number("r1", first, total, min(total, first + MOST_ROWS))
        if last - first > MOST_ROWS:
            raise RefusedError(400, f"A page has at most {MOST_ROWS:,} rows, and {last - first:,} were asked for.")
        headers = dict(answer.headers) | {"X-Rows": str(total)}
        return as_numbers(headers, *(np.ascontiguousarray(each[first:last]) for each in columns))

    def over_steps(self, run: Run, steps: Sequence[int], parameters: Parameters) -> Answer:
        """The effect of some train examples at every step; `missing` tells how many steps are not computed yet.

        Args:
            run: the run.
            steps: those whose dumps can be read.
            parameters: rows, beside those of the ranking.
        """
        end = time.monotonic() + _SECONDS
        found: dict[int, np.ndarray | None] = {}
        missing = 0
        for step in reversed(steps):  # what is on the screen is new
            if time.monotonic() > end and not self._has(run, step, parameters):
                missing += 1
                continue
            answer = self._answer("ranking_at", run, step, parameters.but(step=str(step)), "")
            if "Retry-After" in answer.headers:
                missing += 1
                continue
            found[step] = np.frombuffer(answer.body, np.float32) if answer.status == 200 else None
        size = max((len(each) for each in found.values() if each is not None), default=0)
        rows = parameters.rows("rows", size) if size else np.arange(0)
        return as_json({"steps": list(steps), "values": _picked(found, steps, rows), "missing": missing})

    def _has(self, run: Run, step: int, parameters: Parameters) -> bool:
        with self._lock:
            return _key("ranking_at", run, step, parameters, "") in self._kept

    def _answer(self, name: str, run: Run, step: int, parameters: Parameters, more: str) -> Answer:
        key = _key(name, run, step, parameters, more)
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None:
            return kept
        answer = self._readers.ask(Question(name, run.files(), parameters))
        # An answer that a refused dump gets again and again is kept as well; one that was late is asked for again.
        if answer.status != 503:
            with self._lock:
                self._kept[key] = answer
        return answer


def _key(name: str, run: Run, step: int, parameters: Parameters, more: str) -> Key:
    asked = tuple(parameters.values.get(each, "") for each in _QUESTION)
    return name, str(run.folder), f"{step} {run.dumps[step].token} {more}", asked


def _picked(found: Mapping[int, np.ndarray | None], steps: Sequence[int], rows: np.ndarray) -> list[list[float | None]]:
    columns = [found.get(step) for step in steps]
    return [
        [None if each is None or row >= len(each) else float(each[row]) for each in columns] for row in rows.tolist()
    ]
