"""The kernels' shared library: found beside the sources, or built with the machine's C++ compiler on first use.

    python -m worker.model.cpu.build [FOLDER]

builds it ahead, by default into this package: an image or a wheel then carries it and needs no compiler. Every
library holds the kernels of all instruction sets, so it may move between machines; its name has a digest of the
sources and flags, so an old one is never taken for a new one.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

SOURCES = Path(__file__).parent / "src"
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-ffp-contract=off", "-pthread")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
UNITS = {"avx2.cpp": AVX2, "avx512.cpp": AVX512, "pool.cpp": (), "api.cpp": ()}
SECONDS = 300  # a build takes five


class Unavailable(Exception):
    """There is no library, and why: reads on from the name of a backend."""


def library_path() -> Path:
    """The library's file, built if need be. `Unavailable` when it cannot be."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise Unavailable(f"has kernels for x86-64, not for {platform.machine()}")
    cached = user_cache_path("qwenq") / "kernels"
    for folder in (Path(__file__).parent, cached):
        if (folder / _file_name()).exists():
            return folder / _file_name()
    try:
        cached.mkdir(parents=True, exist_ok=True)
        with FileLock(cached / "lock", timeout=SECONDS):
            return build(cached)
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"cannot store its kernels in {cached}: {error}") from error


def build(folder: Path) -> Path:
    """Compile into `folder`, unless that is done already."""
    target = folder / _file_name()
    if target.exists():
        return target
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = [Path(scratch) / f"{unit}.o" for unit in UNITS]
        # Side by side: the two with kernels take nearly all the time.
        running = [
            _start(compiler, *FLAGS, *flags, "-c", str(SOURCES / unit), "-o", str(made))
            for (unit, flags), made in zip(UNITS.items(), objects, strict=True)
        ]
        for process in running:
            _finish(process)
        linked = Path(scratch) / "linked.so"
        _finish(_start(compiler, "-shared", "-pthread", *map(str, objects), "-o", str(linked)))
        linked.replace(target)  # in one step: nobody loads half a library
    return target


def _file_name() -> str:
    digest = hashlib.sha256(repr((FLAGS, UNITS)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return f"qwenq-{platform.machine()}-{digest.hexdigest()[:16]}.so"


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise Unavailable("is not built, and there is no C++ compiler (c++, g++, clang++ or $CXX)")


def _start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603


def _finish(process: subprocess.Popen[str]) -> None:
    try:
        _, complaint = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Unavailable(f"did not compile in {SECONDS} seconds") from None
    if process.returncode:
        errors = [line for line in complaint.splitlines() if "error" in line] or complaint.splitlines()[-1:]
        raise Unavailable(f"does not compile: {errors[0] if errors else 'the compiler gives no reason'}")


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))  # noqa: T201
    except Unavailable as reason:
        sys.exit(f"the CPU kernel {reason}")
