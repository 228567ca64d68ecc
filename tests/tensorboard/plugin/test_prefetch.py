"""Views of neighbouring steps are read before they are asked for, and are the same as those that are not."""

import threading
import time

import pytest

from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.prefetch import Prefetcher
from bif_lightning.tensorboard.plugin.readers import Readers
from bif_lightning.tensorboard.plugin.scan import Scan
from plugin_runs import write_run

STEPS = (10, 20, 30, 40, 50, 60)
VIEW = Parameters({"matrix": "correlation", "train_by": "label", "height": "5", "width": "4", "at": "60", "token": "t"})


class Counted(Readers):
    """Readers that note the step of every view that they are asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.asked: list[int] = []

    def ask(self, question):
        self.asked.append(int(question.parameters.values["step"]))
        return super().ask(question)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ahead")
    write_run(folder, 12, 6, steps=STEPS)
    return folder


@pytest.fixture
def readers():
    pools: list[Counted] = []

    def make(count: int) -> Counted:
        pools.append(Counted(count))
        pools[-1].warm()
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def settle(pool: Counted) -> list[int]:
    """What was asked, once nothing more is."""
    before = -1
    while before != len(pool.asked) or pool.idle < pool.count:
        before = len(pool.asked)
        time.sleep(0.4)
    asked, pool.asked = pool.asked, []
    return asked


def test_the_steps_that_come_next_are_prepared(folder, readers):
    pool = readers(2)
    ahead, (run,) = Prefetcher(pool), Scan(folder).runs().values()
    views = {20: ahead.view(run, 20, VIEW)}
    assert settle(pool) == [20, 30, 40, 10]
    views[30] = ahead.view(run, 30, VIEW)
    assert settle(pool) == [50], "30 and 40 were there"
    views[20] = ahead.view(run, 20, VIEW)
    assert settle(pool) == [], "backwards: 10 was there, and 30"
    alone = Prefetcher(readers(1))
    for step, view in views.items():
        assert view.status == 200
        assert view == alone.view(run, step, VIEW)


def test_nothing_is_prepared_while_a_reader_is_busy(folder, readers):
    pool = readers(1)
    ahead, (run,) = Prefetcher(pool), Scan(folder).runs().values()
    ahead.view(run, 20, VIEW)
    assert settle(pool) == [20]


def test_the_same_view_asked_twice_at_once_is_read_once(folder, readers):
    pool = readers(1)
    ahead, (run,) = Prefetcher(pool), Scan(folder).runs().values()
    found = []
    threads = [threading.Thread(target=lambda: found.append(ahead.view(run, 40, VIEW))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert settle(pool) == [40]
    assert len({view.body for view in found}) == 1


def test_another_view_is_another_answer(folder, readers):
    pool = readers(1)
    ahead, (run,) = Prefetcher(pool), Scan(folder).runs().values()
    first = ahead.view(run, 40, VIEW)
    assert ahead.view(run, 40, VIEW.but(height="6")).headers["X-Shape"] == "6,4"
    assert ahead.view(run, 40, VIEW.but(matrix="influence")).body != first.body
    assert ahead.view(run, 40, VIEW.but(token="other")) == first
    assert settle(pool) == [40, 40, 40]
    assert ahead.view(run, 40, VIEW.but(matrix="nothing")).status == 400
    write_run(folder, 12, 6, steps=STEPS)
    (anew,) = Scan(folder).runs().values()
    settle(pool)
    ahead.view(anew, 40, VIEW)
    assert settle(pool) == [40], "the dump was written anew"
