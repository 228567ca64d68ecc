"""Compiles the simulated accelerator, once for each version of torch, of Python and of the source.

With the compiler alone: `torch.utils.cpp_extension.load` asks for ninja, which the package needs for nothing else. The
result lies where torch keeps extensions (`TORCH_EXTENSIONS_DIR`, or a folder in the user's cache).
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.cpp_extension import get_default_build_root, include_paths, library_paths

NAME = "simulated_device_library"
_SOURCES = [Path(__file__).with_name(name) for name in ("device.cpp", "operations.cpp", "collectives.cpp")]
_HEADERS = [Path(__file__).with_name("device.h")]
_FLAGS = ["-O1", "-w", "-std=c++20", "-fPIC", f"-DTORCH_EXTENSION_NAME={NAME}", "-DTORCH_API_INCLUDE_EXTENSION_H"]
_LIBRARIES = ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]


def why_not() -> str | None:
    """What this machine lacks to compile an extension of torch; None where nothing is missing."""
    if _compiler() is None:
        return "there is no C++ compiler (Debian: g++), which the simulated accelerator is compiled with"
    if not (_python_headers() / "Python.h").exists():
        return f"there is no {_python_headers()}/Python.h (Debian: python3-dev), which extensions of Python need"
    return None


def library() -> Path:
    """The compiled library. The first process compiles it, and others wait for it.

    Raises:
        RuntimeError: the compiler failed, with what it said.
    """
    folder = _cache() / _key()
    found = folder / f"{NAME}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which a process that ends gives back
        if not found.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                _compile(Path(scratch)).rename(found)
    return found


def _compile(folder: Path) -> Path:
    include = [f"-isystem{path}" for path in (*include_paths(), _python_headers())]
    objects = [folder / f"{source.stem}.o" for source in _SOURCES]
    commands = [
        [str(_compiler()), *_FLAGS, *include, "-c", str(source), "-o", str(made)]
        for source, made in zip(_SOURCES, objects, strict=True)
    ]
    _run_together(commands)
    paths = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    whole = folder / f"{NAME}.so"
    _run_together([[str(_compiler()), "-shared", *map(str, objects), *paths, *_LIBRARIES, "-o", str(whole)]])
    return whole


def _run_together(commands: Sequence[Sequence[str]]) -> None:
    running = [subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for each in commands]
    said = [each.communicate()[0] for each in running]
    for command, each, words in zip(commands, running, said, strict=True):
        if each.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{words[:8000]}")


def _key() -> str:
    found = hashlib.sha256()
    for part in (torch.__version__, platform.python_version(), platform.machine(), *_FLAGS, *_LIBRARIES):
        found.update(part.encode())
    for file in (*_HEADERS, *_SOURCES):
        found.update(file.read_bytes())
    return f"torch-{torch.__version__}-{found.hexdigest()[:16]}"


def _cache() -> Path:
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / NAME


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def _python_headers() -> Path:
    return Path(sysconfig.get_path("include"))
