"""A real TensorBoard serves the Influence tab: its routes, its guards, and what it does when something is broken."""

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from plugin_runs import STEPS, write_run
from ports import free_port

HOST = "127.0.0.1"
TAB = "/data/plugin/influence"


@contextmanager
def tensorboard(logdir: Path, *flags: str, prefix: str = "", **environment: str) -> Iterator["Server"]:
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port), *flags]
    log = logdir.parent / f"tensorboard-{port}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--load_fast", "false"], stdout=out, stderr=out, cwd=logdir, env=os.environ | environment
        )
    server = Server(port, prefix, log)
    try:
        server.wait()
        yield server
    finally:
        process.terminate()
        process.wait(20)


class Server:
    def __init__(self, port: int, prefix: str, log: Path) -> None:
        self.port, self.prefix, self.log = port, prefix, log

    def wait(self) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                if self.ask("/data/plugins_listing")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"TensorBoard did not start: {self.log.read_text()}")

    def ask(self, path: str, method: str = "GET", headers: dict[str, str] | None = None, **parameters: object):
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        connection.request(method, self.prefix + path + query, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    def tab(self, route: str, **parameters: object):
        return self.ask(f"{TAB}/{route}", **parameters)

    def told(self, route: str, **parameters: object):
        status, _, body = self.tab(route, **parameters)
        assert status == 200, body
        return json.loads(body)


@pytest.fixture(scope="module")
def logdir(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("top")
    folder = top / "logs"
    write_run(folder / "version_0" / "bif")
    other = folder / "version_1" / "bif"
    write_run(other, 8, 4, steps=(1, 2, 3))
    broken = other / "step=000000002.h5"
    broken.write_bytes(broken.read_bytes()[:5000])
    write_run(top / "elsewhere", 8, 4, steps=(9,))
    os.mkfifo(other / "step=000000004.h5")
    (other / "step=000000005.h5").symlink_to(top / "elsewhere" / "step=000000009.h5")
    (other / "step=000000006.h5").mkdir()
    (folder / "linked").symlink_to(top / "elsewhere", target_is_directory=True)
    (folder / ".hidden").symlink_to(top / "elsewhere", target_is_directory=True)
    return folder


@pytest.fixture(scope="module")
def server(logdir) -> Iterator[Server]:
    with tensorboard(logdir, "--host", HOST) as running:
        yield running


def test_the_tab_is_listed_and_its_page_is_served(server):
    listing = json.loads(server.ask("/data/plugins_listing")[2])["influence"]
    assert (listing["enabled"], listing["tab_name"]) == (True, "Influence")
    module = listing["loading_mechanism"]["module_path"]
    assert module.endswith(f"{TAB}/static/index.js")
    status, headers, _ = server.ask(module)
    assert status == 200
    assert headers["Content-Type"].startswith(("text/javascript", "application/javascript"))
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert server.tab("static/style.css")[1]["Content-Type"].startswith("text/css")
    status, headers, page = server.tab("static/page.js")
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "text/javascript")
    assert b"export const { render }" in page
    assert b"\nimport " not in page
    for other in ("static/../plugin.py", "static/README.md", "static/uplot.LICENSE", "static/", "static/api.js"):
        assert server.tab(other)[0] == 404, other
    assert server.tab("static/nothing.js")[0] == 404


def test_runs_and_what_is_wrong_with_them(server):
    listed = server.told("runs")
    assert [run["run"] for run in listed["runs"]] == ["linked", "version_0/bif", "version_1/bif"]
    _, good, odd = listed["runs"]
    assert [step["step"] for step in good["steps"]] == list(STEPS)
    assert good["problems"] == []
    assert {step["verdict"] for step in good["steps"]} == {"diverged"}
    assert (good["num_train"], good["has"]["train_thumbnail"], good["samples_token"] != "") == (40, True, True)
    assert [step["step"] for step in odd["steps"]] == [1, 3]
    problems = {each["file"]: each["why"] for each in odd["problems"]}
    assert set(problems) == {f"step=00000000{step}.h5" for step in (2, 4, 5)}
    assert "not a whole HDF5 file" in problems["step=000000002.h5"]
    assert all("not a regular file" in problems[f"step=00000000{step}.h5"] for step in (4, 5))


def test_every_route_answers(server):
    one = {"run": "version_0/bif", "step": 200, "matrix": "correlation"}
    other = {"other_run": "version_0/bif", "other_step": 100}
    token = server.told("runs")["runs"][1]["steps"][1]["token"]
    asked = {
        "samples": {"side": "train"}, "text": {"side": "train", "row": 1}, "thumbnail": {"side": "train", "row": 0},
        "order": {"side": "train", "by": "cluster"}, "view": {"train_by": "label"}, "classes": {},
        "cell": {"train": 1, "query": 1}, "trajectory": {"train": 1, "query": 1}, "top": {"query": 1}, "trust": {},
        "chains": {}, "compare": other, "compare_ranks": other,
    }  # fmt: skip
    for route, parameters in asked.items():
        status, headers, body = server.tab(route, **one, **parameters, token=token)
        assert (status, len(body) > 0) == (200, True), (route, body)
        assert headers["Cache-Control"] == "private, max-age=86400", route
        assert "Access-Control-Allow-Origin" not in headers
    for what, parameters in {
        "top": {"query": 1}, "window": {}, "classes": {}, "trajectory": {"train": 1, "query": 1}, "trust": {},
        "compare_ranks": other,
    }.items():  # fmt: skip
        status, headers, body = server.tab("export", what=what, **one, **parameters)
        assert (status, headers["Content-Type"]) == (200, "text/csv; charset=utf-8"), (what, body)
        assert body.count(b"\n") > 1
        assert headers["Cache-Control"] == "no-cache, must-revalidate"
    assert server.tab("tokens", **one, train=0, query=0)[0] == 404


def test_answers_put_together_from_several_readers(server):
    of = server.told("trajectory", run="version_0/bif", matrix="influence", train=3, query=2)
    assert of["steps"] == list(STEPS)
    assert of["verdict"] == ["diverged"] * 4
    assert np.isfinite(of["low"]).all()
    trust = server.told("trust", run="version_0/bif")
    assert trust["steps"] == list(STEPS)
    assert trust["metrics"] == {"val_loss": [1.0, 0.5, 1 / 3, 0.25]}
    assert trust["thresholds"]["noise_ratio"] == {"most": 1.0}
    assert server.tab("trajectory", run="version_0/bif", matrix="influence", train=3000, query=2)[0] == 400


def test_a_view_is_the_same_when_it_was_prepared(server):
    asked = {"run": "version_0/bif", "matrix": "correlation", "train_by": "cluster", "height": 8, "width": 6, "at": 400}
    first = [server.tab("view", step=step, **asked)[2] for step in STEPS]
    time.sleep(0.5)
    assert [server.tab("view", step=step, **asked)[2] for step in STEPS] == first
    assert len(set(first)) == len(STEPS)
    assert server.tab("view", step=1, **asked)[0] == 404


@pytest.mark.parametrize(
    "run",
    ["../elsewhere", "/etc", "version_0/bif/../bif", "%2e%2e/elsewhere", "version_0/bif\0", "linked/..", ".hidden", ""],
)
def test_no_path_comes_from_a_request(server, run):
    status, _, body = server.tab("samples", run=run, side="train")
    assert status in (400, 404)
    assert "error" in json.loads(body)


def test_only_get_is_answered(server):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, headers, _ = server.ask(f"{TAB}/runs", method)
        assert (status, headers["Allow"]) == (405, "GET")
    assert server.ask(f"{TAB}/runs", "HEAD")[0] == 200


def test_a_foreign_host_name_is_refused(server):
    for host in ("evil.example", "evil.example:6006", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        status, _, body = server.ask(f"{TAB}/runs", headers={"Host": host})
        assert status == 403, host
        assert "--influence_hosts" in json.loads(body)["error"]
    for host in ("localhost", f"localhost:{server.port}", "127.0.0.1", "[::1]:6006"):
        assert server.ask(f"{TAB}/runs", headers={"Host": host})[0] == 200, host


def test_an_answer_is_never_304(server):
    _, headers, _ = server.tab("static/index.js")
    assert "ETag" not in headers
    assert "Last-Modified" not in headers
    again = {"If-None-Match": "*", "If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}
    assert server.ask(f"{TAB}/runs", headers=again)[0] == 200


def test_a_request_that_is_too_long_is_refused(server):
    asked = {"run": "version_0/bif", "matrix": "correlation", "query": 1}
    assert server.tab("trajectory", train="1," * 40_000, **asked)[0] == 414
    status, _, body = server.tab("trajectory", train=",".join("1" * 4097), **asked)
    assert (status, "lists 4097 rows" in json.loads(body)["error"]) == (400, True)


@pytest.mark.slow
def test_a_new_dump_is_found(server, logdir):
    write_run(logdir / "version_2" / "bif", 6, 3, steps=(1,))
    end = time.monotonic() + 120
    while len(server.told("runs")["runs"]) < 4:
        assert time.monotonic() < end
        time.sleep(0.5)
    before = server.told("runs")["runs"][-1]["steps"]
    write_run(logdir / "version_2" / "bif", 6, 3, steps=(1, 2))
    while len(steps := server.told("runs")["runs"][-1]["steps"]) < 2:
        assert time.monotonic() < end
        time.sleep(0.5)
    assert steps[0]["token"] != before[0]["token"], "the dump of step 1 was written anew"


def test_another_place_and_another_name(logdir):
    with tensorboard(
        logdir, "--path_prefix", "/tb/x", "--influence_hosts", "hub.example, other", prefix="/tb/x"
    ) as server:
        assert len(server.told("runs")["runs"]) >= 2
        assert server.ask(f"{TAB}/runs", headers={"Host": "HUB.example:443"})[0] == 200
        assert server.ask(f"{TAB}/runs", headers={"Host": "third"})[0] == 403


def test_a_broken_package_leaves_the_tab_out_and_the_rest_works(logdir, tmp_path):
    (tmp_path / "h5py.py").write_text("raise ImportError('libhdf5 is broken')\n")
    with tensorboard(logdir, PYTHONPATH=str(tmp_path)) as server:
        listing = json.loads(server.ask("/data/plugins_listing")[2])
        assert "influence" not in listing
        assert "scalars" in listing
        assert server.ask("/")[0] == 200
        assert "The Influence tab is left out: ImportError: libhdf5 is broken" in server.log.read_text()


def test_an_empty_folder_is_no_error(tmp_path):
    with tensorboard(tmp_path) as server:
        assert json.loads(server.ask("/data/plugins_listing")[2])["influence"]["enabled"] is False
        assert "No influence dumps yet" in server.told("runs")["notes"][0]


def test_the_entry_point_imports_next_to_nothing():
    code = "import sys, bif_lightning.tensorboard.plugin.loader; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "h5py", "lightning", "matplotlib", "numpy", "xarray", "pandas", "werkzeug"}
    assert not heavy & set(done.stdout.split())


def test_the_server_imports_no_torch_and_no_plots():
    code = "import sys, bif_lightning.tensorboard.plugin.plugin; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "matplotlib", "xarray"} & set(done.stdout.split())
