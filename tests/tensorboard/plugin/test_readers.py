"""The processes that read: what hangs or breaks one is ended, the next question is answered, and none outlives."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from bif_lightning.tensorboard.plugin import reader
from bif_lightning.tensorboard.plugin.catalogue import Catalogue
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.protocol import Question
from bif_lightning.tensorboard.plugin.readers import Readers
from bif_lightning.tensorboard.plugin.run_files import RunFiles
from bif_lightning.tensorboard.plugin.scan import Scan
from plugin_runs import files_of, write_run

pytestmark = pytest.mark.crash


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, 8, 4, steps=(1, 2))
    return files_of(folder)


@pytest.fixture
def readers():
    pools: list[Readers] = []

    def make(**settings) -> Readers:
        pools.append(Readers(**settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def cell(files: RunFiles, step: int = 1) -> Question:
    return Question("cell", files, Parameters({"step": str(step), "matrix": "influence", "train": "0", "query": "0"}))


def script(tmp_path, body: str) -> list[str]:
    """A reader of which one question goes wrong."""
    path = tmp_path / "odd_reader.py"
    head = """
    import os, sys, time
    from bif_lightning.tensorboard.plugin import dispatch, reader
    whole = dispatch.read
    def read(name, here, there, parameters):
        if parameters.values["step"] == "666":
            BODY
        return whole(name, here, there, parameters)
    dispatch.read = read
    reader.main()
    """
    path.write_text(textwrap.dedent(head).replace("BODY", body))
    return [sys.executable, str(path)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split(") ")[1][0] != "Z"


def children() -> set[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True)
    return {int(pid) for pid in found.stdout.split() if alive(int(pid))}


def test_answers_come_from_processes_that_start_when_asked(readers, files):
    before = children()
    pool = readers(count=1)
    assert children() == before
    answer = pool.ask(cell(files))
    assert answer.status == 200
    assert json.loads(answer.body)["values"]["influence"]["value"] is not None
    assert pool.ask(Question("compare_ranks", files, Parameters({
        "step": "1", "other_step": "2", "matrix": "influence"}), files)).status == 200  # fmt: skip
    (pid,) = children() - before
    pool.close()
    assert not alive(pid)


@pytest.mark.parametrize(
    "body",
    ["time.sleep(600)", "os._exit(3)", "os.kill(os.getpid(), 11)", "sys.exit()", "print('noise', flush=True); 1 / 0"],
)
def test_a_reader_that_goes_wrong_is_replaced(readers, files, tmp_path, body):
    pool = readers(count=1, seconds=60, command=script(tmp_path, body))
    assert pool.ask(cell(files)).status == 200
    pool._seconds = 1  # enough for nothing that hangs; what starts anew has a minute, however busy the machine
    answer = pool.ask(cell(files, 666))
    assert answer.status == 503
    assert "Reading took too long" in json.loads(answer.body)["error"]
    pool._seconds = 60
    assert pool.ask(cell(files)).status == 200


def test_what_prints_does_not_disturb_the_answers(readers, files, tmp_path):
    pool = readers(count=1, command=script(tmp_path, "print('noise', flush=True)"))
    assert json.loads(pool.ask(cell(files, 666)).body)["error"].startswith("This run has no dump")
    assert pool.ask(cell(files)).status == 200


def test_while_one_hangs_the_other_answers(readers, files, tmp_path):
    pool = readers(count=2, seconds=200, command=script(tmp_path, "time.sleep(600)"))
    pool.warm()
    assert pool.ask(cell(files)).status == 200
    both = list(pool._idle.queue)
    hanging = threading.Thread(target=pool.ask, args=(cell(files, 666),))
    hanging.start()
    while pool.idle > 1:
        time.sleep(0.01)
    assert [pool.ask(cell(files)).status for _ in range(5)] == [200] * 5
    assert hanging.is_alive()
    (stuck,) = set(both) - set(pool._idle.queue)
    stuck._process.kill()
    hanging.join()


def test_many_questions_at_once(readers, files):
    pool = readers(count=2)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda step: found.append(pool.ask(cell(files, step)).status), args=(step % 2 + 1,))
        for step in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 24


def test_all_busy_is_said(readers, files, tmp_path):
    pool = readers(count=1, seconds=1, command=script(tmp_path, "time.sleep(60)"))
    pool._idle.get()
    answer = pool.ask(cell(files))
    assert answer.status == 503
    assert "busy" in json.loads(answer.body)["error"]


def test_a_reader_that_cannot_start_is_an_answer(readers, files, tmp_path):
    assert readers(count=1, command=[str(tmp_path / "nothing")]).ask(cell(files)).status == 503


def test_readers_end_with_the_server(files, tmp_path):
    code = f"""
    import os, sys
    from pathlib import Path
    from bif_lightning.tensorboard.plugin.parameters import Parameters
    from bif_lightning.tensorboard.plugin.run_files import RunFiles
    from bif_lightning.tensorboard.plugin.readers import Readers
    from bif_lightning.tensorboard.plugin.protocol import Question
    pool = Readers(1)
    files = RunFiles(Path({str(files.folder)!r}), {dict(files.names)!r})
    pool.ask(Question("chains", files, Parameters({{"step": "1"}})))
    print(next(iter(pool._idle.queue))._process.pid, flush=True)
    os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    end = time.monotonic() + 120
    while alive(pid):
        assert time.monotonic() < end, "the reader outlived the server"
        time.sleep(0.05)


def test_a_reader_ends_itself_where_nobody_does(files, monkeypatch, tmp_path):
    """A hang in C cannot be interrupted by Python, and the server may be gone: the kernel's alarm ends it."""
    command = script(tmp_path, "time.sleep(600)")
    code = (tmp_path / "odd_reader.py").read_text().replace("reader.main()", "reader.SECONDS = 1\nreader.main()")
    (tmp_path / "odd_reader.py").write_text(code)
    assert reader.SECONDS == 10
    pool = Readers(1, seconds=3600, command=command)
    assert pool.ask(cell(files, 666)).status == 503
    pool.close()


def test_a_reader_imports_no_torch():
    code = "import sys, bif_lightning.tensorboard.plugin.dispatch; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {
        "torch",
        "lightning",
        "matplotlib",
        "pandas",
        "xarray",
        "scipy.special",
        "scipy.stats",
        "hdf5plugin",
    } & set(loaded)


def test_control_c_of_the_terminal_does_not_reach_a_reader(readers, files):
    pool = readers(count=1)
    assert pool.ask(cell(files)).status == 200
    process = next(iter(pool._idle.queue))._process
    process.send_signal(signal.SIGINT)
    assert pool.ask(cell(files)).status == 200
    assert next(iter(pool._idle.queue))._process is process


@pytest.mark.slow
def test_a_dump_that_hangs_is_found_and_left_alone(readers, tmp_path):
    write_run(tmp_path / "run", 8, 4, steps=(1, 2, 666, 3))
    body = "time.sleep(60)"
    command = script(tmp_path, body)
    code = (tmp_path / "odd_reader.py").read_text()
    (tmp_path / "odd_reader.py").write_text(code.replace('parameters.values["step"] == "666"', "666 in here.names"))
    pool = readers(count=1, seconds=6, command=command)
    (run,) = Scan(tmp_path).runs().values()
    catalogue = Catalogue(pool)
    listed = catalogue.listed({"run": run})["runs"][0]
    assert listed["problems"] == []
    end = time.monotonic() + 200
    while not (listed["problems"] and all(step["verdict"] for step in listed["steps"])):
        assert time.monotonic() < end, listed
        time.sleep(0.5)
        listed = catalogue.listed({"run": run})["runs"][0]
    assert [each["file"] for each in listed["problems"]] == ["step=000000666.h5"]
    assert [step["step"] for step in listed["steps"]] == [1, 2, 3]
    assert "Reading took too long" in (catalogue.trouble(run, 666) or "")
    assert catalogue.trouble(run, 1) is None


def test_a_busy_reader_is_no_trouble_of_the_dump(readers, files, tmp_path):
    pool = readers(count=1, seconds=1)
    (run,) = Scan(files.folder).runs().values()
    catalogue = Catalogue(pool)
    reader = pool._idle.get()
    assert [step["verdict"] for step in catalogue.listed({"run": run})["runs"][0]["steps"]] == [None, None]
    pool._idle.put(reader)
    pool._seconds = 60
    assert [step["verdict"] for step in catalogue.listed({"run": run})["runs"][0]["steps"]] == ["diverged"] * 2


class Counting(Readers):
    """Readers that keep the names of what they were asked."""

    def __init__(self) -> None:
        super().__init__(count=1)
        self.asked: list[str] = []

    def ask(self, question):
        self.asked.append(question.name)
        return super().ask(question)


@pytest.fixture
def counting():
    pool = Counting()
    yield pool
    pool.close()


def test_a_list_that_was_prepared_asks_no_reader(counting, files):
    (run,) = Scan(files.folder).runs().values()
    catalogue = Catalogue(counting)
    catalogue.prepare(run)
    assert counting.asked == ["dump_lines", "description"]
    listed = catalogue.listed({"run": run})["runs"][0]
    assert counting.asked == ["dump_lines", "description"]
    assert [step["verdict"] for step in listed["steps"]] == ["diverged"] * 2
    assert listed["num_train"] == 8


def test_a_list_waits_for_no_more_than_the_newest_dumps(counting, tmp_path, monkeypatch):
    monkeypatch.setattr("bif_lightning.tensorboard.plugin.catalogue._BATCH", 1)
    monkeypatch.setattr("bif_lightning.tensorboard.plugin.catalogue._SECONDS", 0.0)
    write_run(tmp_path / "run", 8, 4, steps=(1, 2, 3))
    (run,) = Scan(tmp_path).runs().values()
    catalogue = Catalogue(counting)
    for _ in range(2):
        listed = catalogue.listed({"run": run})["runs"][0]
        assert [step["verdict"] for step in listed["steps"]] == [None, None, "diverged"]
        assert counting.asked.count("dump_lines") == 1
    end = time.monotonic() + 120
    while None in catalogue.verdicts(run).values():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_run_of_odd_files_alone_is_listed(counting, tmp_path):
    (tmp_path / "run" / "step=000000001.h5").mkdir(parents=True)
    (tmp_path / "run" / "step=000000002.h5").symlink_to("/dev/null")
    (run,) = Scan(tmp_path).runs().values()
    assert [each["file"] for each in Catalogue(counting).listed({"run": run})["runs"][0]["problems"]] == [
        "step=000000002.h5"
    ]
