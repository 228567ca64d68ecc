"""The Influence tab's server: its routes, and the guards that stand before every one of them.

TensorBoard has no login. Who can reach it sees all ids, texts, pictures and numbers of the dumps below its log folder:
keep it on this machine's own address, which is the default, and reach it from elsewhere through an SSH tunnel.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from bif_lightning.tensorboard.plugin import exports, trajectories, trust
from bif_lightning.tensorboard.plugin.answers import Answer, RefusedError, as_json
from bif_lightning.tensorboard.plugin.catalogue import Catalogue
from bif_lightning.tensorboard.plugin.hosts import may_ask
from bif_lightning.tensorboard.plugin.matrix import matrix_of
from bif_lightning.tensorboard.plugin.page import joined
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.prefetch import Prefetcher
from bif_lightning.tensorboard.plugin.protocol import Question
from bif_lightning.tensorboard.plugin.rankings import Rankings
from bif_lightning.tensorboard.plugin.readers import Readers
from bif_lightning.tensorboard.plugin.scan import Run, Scan

NAME = "influence"
_STATIC = Path(__file__).parent / "static"
_DAY = 86400
_PLAIN = ("samples", "found", "text", "thumbnail", "order", "classes", "cell", "top", "chains", "tokens")
_OF_TWO = ("common", "compare", "compare_ranks")

Route = Callable[[Parameters], Answer]


class InfluencePlugin(base_plugin.TBPlugin):
    """Serves the tab, and what it shows of the dumps below the log folder.

    Args:
        context: from TensorBoard.
    """

    plugin_name = NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        super().__init__(context)
        flags: Any = context.flags
        logdir = str(context.logdir or "")
        self._remote = "://" in logdir
        self._scan = None if self._remote or not logdir else Scan(logdir)
        self._readers = Readers()
        self._catalogue = Catalogue(self._readers)
        self._ahead = Prefetcher(self._readers)
        self._rankings = Rankings(self._readers)
        self._bound_to = _bound_to(flags)
        self._allowed = {name.strip().lower() for name in str(getattr(flags, "influence_hosts", "")).split(",")} - {""}

    def get_plugin_apps(self) -> Mapping[str, Callable[..., Any]]:
        """Every route, by its exact path."""
        routes: dict[str, Route] = {name: self._plain(name) for name in _PLAIN}
        routes |= {name: self._of_two(name) for name in _OF_TWO}
        routes["view"] = self._view
        routes |= {"ranking": self._ranking, "ranking_steps": self._ranking_steps}
        routes |= {"runs": self._runs, "trajectory": self._trajectory, "trust": self._trust, "export": self._export}
        apps = {f"/{name}": self._guarded(route) for name, route in routes.items()}
        # Explicit types: a machine that guesses another type for .js keeps the browser from running it.
        first, style = ((_STATIC / name).read_bytes() for name in ("index.js", "style.css"))
        apps["/static/index.js"] = self._guarded(_always(first, "text/javascript"))
        apps["/static/page.js"] = self._guarded(_always(joined(_STATIC, "page").encode(), "text/javascript"))
        apps["/static/style.css"] = self._guarded(_always(style, "text/css"))
        return apps

    def is_active(self) -> bool:
        """Whether there is a dump below the log folder."""
        runs = {} if self._scan is None else self._scan.runs()
        if runs:
            # The tab may be opened next: its first answer then need not wait for a process to start, nor for the run
            # that it shows first.
            Thread(target=self._prepare, args=(max(runs.values(), key=lambda run: run.written),), daemon=True).start()
        return bool(runs)

    def _prepare(self, run: Run) -> None:
        self._readers.warm()
        self._catalogue.prepare(run)

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Where TensorBoard finds the page."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="Influence")

    def _guarded(self, route: Route) -> Callable[..., Any]:
        @wrappers.Request.application
        def app(request: wrappers.Request) -> wrappers.Response:
            answer = self._answer(request, route)
            # A token identifies the version of the file, so the answer never changes.
            lasts = answer.status == 200 and bool(request.args.get("token"))
            headers = list(answer.headers.items())
            return http_util.Respond(
                request, answer.body, answer.kind, code=answer.status, expires=_DAY if lasts else 0, headers=headers
            )

        return app

    def _answer(self, request: wrappers.Request, route: Route) -> Answer:
        if request.method not in ("GET", "HEAD"):
            refusal = RefusedError(405, "Only GET is answered here.").answer()
            return Answer(refusal.body, status=405, headers={"Allow": "GET"})
        if not may_ask(request.headers.get("Host", ""), self._bound_to, self._allowed):
            host = request.headers.get("Host", "")[:80]
            words = f"This TensorBoard is not called {host!r}; if a proxy is, start it with --influence_hosts=NAME."
            return RefusedError(403, words).answer()
        try:
            return route(Parameters(request.args.to_dict()))
        except RefusedError as refusal:
            return refusal.answer()

    def _runs(self, parameters: Parameters) -> Answer:
        if self._scan is None:
            where = "is remote" if self._remote else "is not given by --logdir"
            return as_json(
                {"runs": [], "notes": [f"The log folder {where}: influence dumps are read from local folders."]}
            )
        return as_json(self._catalogue.listed(self._scan.runs()))

    def _run(self, parameters: Parameters, name: str = "run") -> Run:
        # Only what the scan found is served: no path ever comes from a request.
        run = None if self._scan is None else self._scan.runs().get(parameters.text(name))
        if run is None:
            raise RefusedError(404, f"No run is called {parameters.text(name)[:200]!r}; reload the list of runs.")
        return run

    def _readable(self, parameters: Parameters, other: str = "") -> Run:
        """The requested run, unless the dump of the requested step is known to be broken."""
        run = self._run(parameters, f"{other}run")
        name = f"{other}step"
        if parameters.has(name):
            step = parameters.number(name, 0, 10**15)
            if why := self._catalogue.trouble(run, step):
                raise RefusedError(422, f"The dump of step {step} cannot be read: {why}")
        return run

    def _plain(self, name: str) -> Route:
        def route(parameters: Parameters) -> Answer:
            return self._readers.ask(Question(name, self._readable(parameters).files(), parameters))

        return route

    def _view(self, parameters: Parameters) -> Answer:
        run, step = self._readable(parameters), parameters.number("step", 0, 10**15)
        if step not in run.dumps:
            raise RefusedError(404, f"This run has no dump of step {step}; reload the list of runs.")
        return self._ahead.view(run, step, parameters)

    def _ranking(self, parameters: Parameters) -> Answer:
        return self._rankings.rows(self._readable(parameters), parameters)

    def _ranking_steps(self, parameters: Parameters) -> Answer:
        run = self._run(parameters)
        steps = [step for step in run.dumps if self._catalogue.trouble(run, step) is None]
        return self._rankings.over_steps(run, steps, parameters)

    def _of_two(self, name: str) -> Route:
        def route(parameters: Parameters) -> Answer:
            here, there = self._readable(parameters), self._readable(parameters, "other_")
            return self._readers.ask(Question(name, here.files(), parameters, there.files()))

        return route

    def _points(self, name: str, parameters: Parameters) -> list[Mapping[str, Any]]:
        """Points of all steps of a run, each reader a part of them, in the order of the steps."""
        run = self._run(parameters)
        steps = [step for step in run.dumps if self._catalogue.trouble(run, step) is None]
        # Interleaved: a run of long files then takes all readers alike.
        parts = [part for start in range(self._readers.count) if (part := steps[start :: self._readers.count])]
        with ThreadPoolExecutor(len(parts) or 1) as threads:
            questions = [Question(name, run.files(part), parameters) for part in parts]
            found = [point for answer in threads.map(self._readers.ask, questions) for point in _points_in(answer)]
        return sorted(found, key=lambda point: point["step"])

    def _trajectory(self, parameters: Parameters) -> Answer:
        return as_json(self._curve(parameters, matrix_of(parameters).helps))

    def _curve(self, parameters: Parameters, sign: int) -> dict[str, Any]:
        points = self._points("trajectory_points", parameters)
        return trajectories.assemble(points, parameters, self._catalogue.verdicts(self._run(parameters)), sign)

    def _trust(self, parameters: Parameters) -> Answer:
        return as_json(trust.assemble(self._points("trust_points", parameters)))

    def _export(self, parameters: Parameters) -> Answer:
        what = parameters.choice("what", ("top", "window", "classes", "trajectory", "trust", "compare_ranks"))
        if what == "trajectory":
            return exports.trajectory_csv(self._curve(parameters, 1), matrix_of(parameters), parameters)
        if what == "trust":
            return exports.trust_csv(trust.assemble(self._points("trust_points", parameters)))
        return (self._of_two if what in _OF_TWO else self._plain)(f"export_{what}")(parameters)


def _points_in(answer: Answer) -> Iterable[Mapping[str, Any]]:
    value = json.loads(answer.body)
    if answer.status != 200:
        raise RefusedError(answer.status, value["error"])
    return value["points"]


def _bound_to(flags: Any) -> str:
    """Name or address that TensorBoard listens on; empty for all of them."""
    if getattr(flags, "bind_all", False):
        return ""
    return str(getattr(flags, "host", None) or "localhost")


def _always(body: bytes, kind: str) -> Route:
    answer = Answer(body, kind=kind)
    return lambda parameters: answer
