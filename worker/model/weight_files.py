"""The safetensors files of a checkpoint folder: one file, or shards with an index. Knows names, types and shapes.

Headers are read when the folder is opened, contents only when a tensor is asked for. Whatever is wrong is a
CheckpointError that names the file and the tensor.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from worker.model.config import read_json
from worker.model.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Stored(NamedTuple):
    """A tensor as its file's header describes it; types are spelled as safetensors does ("F16", "I32")."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class WeightFiles:
    """Every tensor of one checkpoint, by name."""

    def __init__(self, stored: dict[str, Stored]) -> None:
        self.stored = stored

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read all headers of the checkpoint folder `path`."""
        stored: dict[str, Stored] = {}
        for file in list_files(path):
            stored |= read_header(file)
        return cls(stored)

    def read(self, name: str) -> Tensor:
        """The tensor `name`, which must be there, on the CPU and in the type of its file."""
        file = self.stored[name].file
        try:
            with safe_open(file, framework="pt") as weights:
                # Copied: the tensor is a view of the mapped file, and one that is overwritten while a model
                # runs on it would kill the process.
                tensor: Tensor = weights.get_tensor(name).clone()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: {name} cannot be read: {error}") from error
        return tensor


def list_files(path: Path) -> Sequence[Path]:
    """The files the weights are in: those that the index names, else the single one. They need not exist."""
    index = path / INDEX
    if not index.exists():
        return [path / SINGLE]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index}: weight_map must say which file each tensor is in; download it again")
    return [path / name for name in sorted(set(names.values()))]


def read_header(file: Path) -> dict[str, Stored]:
    """What is in one safetensors file. A truncated file shows here: its header states where every tensor ends."""
    if not file.exists():
        raise CheckpointError(f"{file}: no such file; download it again")
    try:
        with safe_open(file, framework="pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 - not a mapping
            return {
                name: Stored(file, header.get_dtype(), tuple(header.get_shape()))
                for name, header in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); download it again") from error
