"""Is this folder the checkpoint its config.json says it is? Every finding at once, without loading the weights.

Used after a download, before a demo is kept, and by `qwenq model verify`. Reads all headers, and of the contents only
what is small and betrays a broken or foreign file: zero points, group indices and the rank file.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from worker.model.config import QuantizationConfig, QwenConfig, load_config, load_generation_defaults
from worker.model.errors import CheckpointError
from worker.model.faults import groups_fault, header_fault, zeros_fault
from worker.model.layout import Expected, expected_tensors
from worker.model.tokenizer import Tokenizer
from worker.model.weight_files import Stored, WeightFiles, list_files, read_header

# The vocabulary that all Qwen-1 models share: its count, and the content of its rank file.
QWEN_RANKS = 151_643
QWEN_RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"


def verify(path: Path) -> list[str]:
    """What is wrong with the checkpoint in the folder `path`, a sentence a finding; empty when it is complete."""
    return list(_findings(path))


def _findings(path: Path) -> Iterator[str]:
    try:
        config = load_config(path)
    except CheckpointError as error:
        yield str(error)
        return  # what the other files should hold is not known
    try:
        load_generation_defaults(path)
    except CheckpointError as error:
        yield str(error)
    yield from _vocabulary(path, config)
    yield from _weights(path, config)


def _vocabulary(path: Path, config: QwenConfig) -> Iterator[str]:
    try:
        tokenizer = Tokenizer.load(path)
    except CheckpointError as error:
        yield str(error)
        return
    if tokenizer.n_vocab > config.vocab_size:
        yield (
            f"{path}: the rank file and its control tokens need {tokenizer.n_vocab} rows, "
            f"vocab_size in config.json is {config.vocab_size}"
        )
    if tokenizer.endoftext == QWEN_RANKS:
        (file,) = path.glob("*.tiktoken")
        # Some copies went through a Windows checkout: the content counts, not its line ends.
        digest = hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
        if digest != QWEN_RANKS_SHA256:
            yield f"{file}: as long as Qwen's rank file but not the same (SHA-256 {digest}); download it again"


def _weights(path: Path, config: QwenConfig) -> Iterator[str]:
    try:
        expected = list(expected_tensors(config))
    except ValueError as error:
        yield f"{path}: quantization_config cannot be right: {error}"
        return
    stored: dict[str, Stored] = {}
    unreadable = []
    try:
        for file in list_files(path):
            try:
                stored |= read_header(file)
            except CheckpointError as error:
                unreadable.append(str(error))
    except CheckpointError as error:
        unreadable.append(str(error))
    if unreadable:
        yield from unreadable
        return  # each of their tensors would only be named as missing again
    sound = []
    for tensor in expected:
        if problem := header_fault(tensor, stored):
            yield problem
        elif tensor.name in stored:
            sound.append(tensor)
    for name in sorted(stored.keys() - {tensor.name for tensor in expected}):
        yield f"{name} in {stored[name].file.name} is no tensor of this model"
    if config.quantization is not None:
        yield from _contents(sound, WeightFiles(stored), config.quantization)


def _contents(tensors: list[Expected], files: WeightFiles, quantization: QuantizationConfig) -> Iterator[str]:
    checks: dict[str, Callable[[Tensor, QuantizationConfig], str | None]] = {
        "qzeros": zeros_fault,
        "g_idx": groups_fault,
    }
    for tensor in tensors:
        check = checks.get(tensor.name.rpartition(".")[2])
        if check is not None and (problem := check(files.read(tensor.name), quantization)):
            yield f"{tensor.name} {problem}"
