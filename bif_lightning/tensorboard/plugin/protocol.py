"""Messages between the server and its reader processes: a line of JSON, then the bytes that it announces.

JSON rather than pickle: a reader that a hostile file has taken over must not run code in the server.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bif_lightning.tensorboard.plugin.answers import Answer
from bif_lightning.tensorboard.plugin.parameters import Parameters
from bif_lightning.tensorboard.plugin.run_files import RunFiles


@dataclass(frozen=True)
class Question:
    """One question to a reader: its name, the run or the two runs, and the parameters of the request."""

    name: str
    here: RunFiles
    parameters: Parameters
    there: RunFiles | None = None


def send_question(to: IO[bytes], question: Question) -> None:
    """Write one question."""
    there = None if question.there is None else _as_dict(question.there)
    line = {"name": question.name, "here": _as_dict(question.here), "there": there}
    _send(to, line | {"parameters": dict(question.parameters.values)}, b"")


def receive_question(source: IO[bytes]) -> Question | None:
    """The next question; None at the end."""
    received = _receive(source)
    if received is None:
        return None
    line, _ = received
    there = None if line["there"] is None else _as_run_files(line["there"])
    return Question(line["name"], _as_run_files(line["here"]), Parameters(line["parameters"]), there)


def send_answer(to: IO[bytes], answer: Answer) -> None:
    """Write one answer."""
    _send(to, {"kind": answer.kind, "status": answer.status, "headers": dict(answer.headers)}, answer.body)


def receive_answer(source: IO[bytes]) -> Answer | None:
    """The next answer; None if the other side has ended."""
    received = _receive(source)
    return None if received is None else Answer(received[1], **received[0])


def _as_dict(files: RunFiles) -> dict[str, Any]:
    return {"folder": str(files.folder), "names": {str(step): name for step, name in files.names.items()}}


def _as_run_files(values: Mapping[str, Any]) -> RunFiles:
    return RunFiles(Path(values["folder"]), {int(step): name for step, name in values["names"].items()})


def _send(to: IO[bytes], line: Mapping[str, Any], body: bytes) -> None:
    to.write(json.dumps({"line": line, "size": len(body)}).encode() + b"\n" + body)
    to.flush()


def _receive(source: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    text = source.readline()
    if not text.endswith(b"\n"):
        return None
    head = json.loads(text)
    body = source.read(head["size"])
    return (head["line"], body) if len(body) == head["size"] else None
