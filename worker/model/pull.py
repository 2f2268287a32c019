"""`qwenq model pull`: the real checkpoint from a model hub into a folder, resumable and checked.

Only data is downloaded, never Python: the repository's own model code is neither needed nor run. Calling again
after an interruption goes on where it stopped, inside the large files too.
"""

from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from worker.model.errors import CheckpointError
from worker.model.verify import verify

REPOSITORY = "Qwen/Qwen-1_8B-Chat-Int4"

Source = Literal["huggingface", "modelscope"]

# An allow-list: whatever else a repository holds (its modeling_qwen.py above all) stays there.
FILES = (
    "config.json",
    "generation_config.json",
    "quantize_config.json",
    "tokenizer_config.json",
    "*.tiktoken",
    "*.safetensors",
    "*.safetensors.index.json",
    "LICENSE*",
    "NOTICE*",
)


def pull(
    repository: str, target: Path, *, source: Source = "huggingface", revision: str | None = None
) -> Path:
    """Download `repository` into the folder `target` and verify it. Progress is shown by the hub's own client.

    CheckpointError when the hub cannot be reached or refuses (what has arrived is kept for the next call), when
    modelscope is asked for and not installed, and when the folder is not a complete checkpoint afterwards.
    """
    target.mkdir(parents=True, exist_ok=True)
    fetch = {"huggingface": _from_huggingface, "modelscope": _from_modelscope}[source]
    try:
        fetch(repository, target, revision)
    except CheckpointError:
        raise
    except Exception as error:
        # The clients changed their HTTP library more than once; what they raise has no common base.
        raise CheckpointError(
            f"could not download {repository} from {source}: {type(error).__name__}: {error}\n"
            "What has arrived is kept: run the same command again to go on."
        ) from error
    if problems := verify(target):
        raise CheckpointError(f"{repository} was downloaded to {target}, but:\n" + "\n".join(problems))
    return target


def licence_notice() -> str:
    """What someone who pulls Qwen-1.8B-Chat-Int4 must know of its licence, in our words."""
    return """\
Qwen-1.8B-Chat-Int4 is under the Tongyi Qianwen RESEARCH License Agreement of Alibaba Cloud. In short:
  - research and evaluation only: commercial use needs a separate licence from Alibaba Cloud;
  - whoever passes the model on includes the agreement and its attribution notice, and marks changed files;
  - its output may not be used to improve other language models, except Tongyi Qianwen and its derivatives;
  - it grants no trademark rights, and is governed by the laws of China.
This is a summary and no substitute: read the agreement (LICENSE in the model's folder or repository).
By using the model you accept it. qwenq itself is Apache-2.0 and ships no weights."""


def _from_huggingface(repository: str, target: Path, revision: str | None) -> None:
    from huggingface_hub import HfApi, hf_hub_url, snapshot_download
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    for file in info.siblings or []:
        final = target / file.rfilename
        if file.lfs is None or not _wanted(file.rfilename) or final.exists():
            continue
        # The client resumes a broken connection, but begins a file again when its process was stopped.
        # So the large files are fetched here, and the client below only compares their SHA-256.
        partial = target / ".cache" / "qwenq" / f"{file.lfs.sha256}.partial"
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as stream:
            http_get(
                hf_hub_url(repository, file.rfilename, revision=info.sha),
                stream,
                resume_size=partial.stat().st_size,
                headers=build_hf_headers(),
                expected_size=file.lfs.size,
                displayed_filename=file.rfilename,
            )
        partial.rename(final)
    snapshot_download(repository, revision=info.sha, local_dir=target, allow_patterns=list(FILES))


def _from_modelscope(repository: str, target: Path, revision: str | None) -> None:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            "the modelscope client is not installed; install it with: pip install 'qwenq[modelscope]'"
        ) from error
    snapshot_download(repository, revision=revision, local_dir=str(target), allow_patterns=list(FILES))


def _wanted(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in FILES)
