"""Work on threads: results in order, one end for all, and the steps that are counted."""

import threading

import pytest
import torch

from bif_lightning.distributed.threads import Steps, StoppedError, offset_progress, on_threads

pytestmark = pytest.mark.exact


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_calls(workers: int) -> None:
    def call(number: int) -> tuple[int, int]:
        return number, torch.get_num_threads()

    found = on_threads([lambda number=number: call(number) for number in range(7)], workers, 1)
    assert [number for number, _ in found] == list(range(7))
    assert workers == 1 or {intra_op for _, intra_op in found} == {1}


@pytest.mark.parametrize("error", [ValueError("from a call"), KeyboardInterrupt("from a call")])
def test_an_error_in_one_ends_the_others_at_their_next_step(error: BaseException) -> None:
    steps, entered, stopped = Steps(), threading.Event(), list[str]()

    def fails() -> None:
        entered.wait()
        raise error

    def goes_on() -> None:
        entered.set()
        try:
            for _ in range(10**6):
                steps.tick()
        except StoppedError:
            stopped.append("here")
            raise

    with pytest.raises(type(error), match="from a call"):
        on_threads([goes_on, fails], 2, 1, steps)
    assert stopped == ["here"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError("asked to"), KeyboardInterrupt("asked to")])
def test_what_progress_raises_ends_all_and_no_handler_of_errors_swallows_it(workers: int, error: BaseException) -> None:
    seen = list[tuple[int, int]]()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 5:
            raise error

    steps = Steps(100, progress)

    def tolerant() -> None:
        for _ in range(50):
            try:
                steps.tick()
            except Exception:
                seen.append((-1, -1))

    with pytest.raises(type(error), match="asked to"):
        on_threads([tolerant, tolerant], workers, 1, steps)
    assert seen == [(done, 100) for done in range(1, 6)]


def test_steps_outlive_several_pieces_of_work() -> None:
    seen = list[tuple[int, int]]()
    steps = Steps(6, lambda done, total: seen.append((done, total)))
    for count in (1, 2):
        on_threads([lambda count=count: steps.tick(count)] * 2, 2, 1, steps)
    assert seen == [(1, 6), (2, 6), (4, 6), (6, 6)]


def test_a_part_is_shown_within_the_whole() -> None:
    seen = list[tuple[int, int]]()
    part = offset_progress(lambda done, total: seen.append((done, total)), before=10, after=5)
    assert part is not None
    part(1, 4)
    assert seen == [(11, 19)]
    assert offset_progress(None, before=10) is None
