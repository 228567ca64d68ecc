"""Folders of this machine, told from places that are none: s3://bucket/run, gs://bucket/run, hdfs://..."""

import os
import re
from pathlib import Path
from typing import Literal
from urllib.request import url2pathname

# Two letters or more, since C:/ is a drive; one slash, since pathlib leaves one of two.
_SCHEME = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+)(?::/+|(?P<chained>::))(?P<rest>.*)", re.DOTALL)
_LOCAL = ("file", "local")


def local_path(place: str | os.PathLike[str], name: str, *, access: Literal["write", "read"] = "write") -> Path:
    """The path of a folder or file of this machine; file:///tmp/run is /tmp/run.

    Args:
        place: a path, or a URL.
        name: of the argument, for the message.
        access: what it is for.

    Raises:
        ValueError: the place is on another machine.

    >>> str(local_path("runs/bif", "dirpath")), str(local_path("file:///runs/bif", "dirpath"))
    ('runs/bif', '/runs/bif')
    """
    text = os.fspath(place)
    found = _SCHEME.match(text)
    if found is None:
        return Path(text)
    scheme, rest = found["scheme"], found["rest"]
    if found["chained"]:  # a cache of what follows
        return local_path(rest, name, access=access)
    if scheme in _LOCAL:
        return Path(url2pathname(f"/{rest}"))
    url = f"{scheme}://{rest}"
    remedy = {
        "write": "give a local folder as dirpath, and copy it when the training is over, for example by "
        f"fsspec.filesystem({scheme!r}).put(dirpath, {url!r}, recursive=True)",
        "read": "copy it here first, for example by "
        f"fsspec.filesystem({scheme!r}).get({url!r}, 'local', recursive=True)",
    }[access]
    raise ValueError(f"{name} is {url}, which is no place of this machine, and only local files are used: {remedy}")
