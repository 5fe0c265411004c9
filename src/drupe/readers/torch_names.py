"""Which of a folder's PyTorch files are its weights: training leaves optimisers and arguments beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from drupe.errors import UsageError

_USUAL = (
    *("pytorch_model.bin", "diffusion_pytorch_model.bin", "adapter_model.bin", "open_clip_pytorch_model.bin"),
    *("model.bin", "model.pt", "model.pth", "model.ckpt", "consolidated.00.pth", "consolidated.pth"),
)
"""In order: the first that is there is taken."""
_BESIDE = re.compile(
    r"(training_args|optimizer|optim|scheduler|lr_scheduler|scaler|rng_state|random_states|trainer_state"
    r"|.*_optim_states|.*tokenizer)[^/]*"
)
_SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}\.\w+")


def is_torch_name(name: str) -> bool:
    """Whether a file of that name can only be one of PyTorch; others than these call theirs ``.bin``, too.

    >>> [is_torch_name(name) for name in ("a/pytorch_model.bin", "x.pt", "model.bin")]
    [True, True, False]
    """
    file = name.rpartition("/")[2]
    return not file.endswith(".bin") or "pytorch_model" in file or file == "adapter_model.bin"


def is_training_leftover(name: str) -> bool:
    """Whether a file of that name is what training leaves beside the weights.

    >>> [is_training_leftover(name) for name in ("run/training_args.bin", "optimizer.pt", "pytorch_model.bin")]
    [True, True, False]
    """
    return _BESIDE.fullmatch(name.rpartition("/")[2]) is not None


def weight_files(names: Sequence[str]) -> list[str]:
    """The files among ``names`` (of one folder) that make up the model; none when all are of another kind.

    Raises UsageError when the choice is the user's.

    >>> weight_files(["m/optimizer.pt", "m/pytorch_model.bin", "m/training_args.bin"])
    ['m/pytorch_model.bin']
    """
    files = {name.rpartition("/")[2]: name for name in names}
    kept = {file: name for file, name in files.items() if not is_training_leftover(file)}
    for file in _USUAL:
        if file in kept:
            return [kept[file]]
    shards = {match[1] for file in kept if (match := _SHARD.fullmatch(file))}
    if len(shards) == 1 and all(_SHARD.fullmatch(file) for file in kept):
        return sorted(kept.values())
    if len(kept) > 1:
        raise UsageError(
            f"several models in one folder: {', '.join(sorted(kept)[:5])}", hint="give the path of one file"
        )
    return list(kept.values())
