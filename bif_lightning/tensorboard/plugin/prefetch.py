"""Prefetches the views that a slider reaches next."""

from concurrent.futures import Future
from threading import Lock, Thread

from cachetools import LRUCache

from bif_lightning.tensorboard.plugin.answers import Answer
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.protocol import Question
from bif_lightning.tensorboard.plugin.readers import Readers
from bif_lightning.tensorboard.plugin.scan import Run

_MOST_BYTES = 64 << 20
_AHEAD, _BEHIND = 2, 1
_NOT_OF_THE_VIEW = ("token", "step")

Key = tuple[str, str, tuple[tuple[str, str], ...]]


class Prefetcher:
    """Answers and caches views; while readers are idle it reads those of the neighbouring steps.

    Args:
        readers: the reader processes.
    """

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._kept: LRUCache[Key, Answer] = LRUCache(_MOST_BYTES, getsizeof=lambda answer: len(answer.body))
        self._pending: dict[Key, Future[Answer]] = {}
        self._lock = Lock()
        self._last = (0, 0)  # step of the last view, and how many there were

    def view(self, run: Run, step: int, parameters: Parameters) -> Answer:
        """The view of a step, which the run must have."""
        with self._lock:
            before, count = self._last
            self._last = (step, count + 1)
        answer = self._answer(run, step, parameters)
        if answer.status == 200:
            Thread(target=self._prepare, args=(run, step, parameters, step < before, count + 1), daemon=True).start()
        return answer

    def _prepare(self, run: Run, step: int, parameters: Parameters, backwards: bool, count: int) -> None:
        steps = list(run.dumps)[:: -1 if backwards else 1]
        at = steps.index(step)
        for following in (*steps[at + 1 : at + 1 + _AHEAD], *steps[max(at - _BEHIND, 0) : at]):
            # Stop for a newer view, and leave one reader to the user's next question.
            if self._last[1] != count or self._readers.idle < 2:
                return
            self._answer(run, following, parameters)

    def _answer(self, run: Run, step: int, parameters: Parameters) -> Answer:
        key = _key(run, step, parameters)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                return kept
            pending = self._pending.get(key)
            mine = Future[Answer]()
            if pending is None:
                self._pending[key] = mine
        if pending is not None:
            return pending.result()
        answer = self._readers.ask(Question("view", run.files(), parameters.but(step=str(step))))
        with self._lock:
            del self._pending[key]
            if answer.status == 200:
                self._kept[key] = answer
        mine.set_result(answer)
        return answer


def _key(run: Run, step: int, parameters: Parameters) -> Key:
    # The order belongs to the dump of another step, which may be replaced too.
    at = parameters.values.get("at", "")
    ordering = run.dumps.get(int(at)) if at.isdecimal() and len(at) < 16 else list(run.dumps.values())[-1]
    view = {name: value for name, value in parameters.values.items() if name not in _NOT_OF_THE_VIEW}
    tokens = (run.dumps[step].token, "" if ordering is None else ordering.token, run.samples_token)
    return str(run.folder), " ".join(tokens), tuple(sorted(view.items()))
