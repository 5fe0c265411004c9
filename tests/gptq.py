"""GPTQ on the small Llamas of tests/models: rounding with error feedback, from the inputs the model really sees.

Frantar et al. 2023, https://arxiv.org/abs/2210.17323: inputs are rounded one by one; what is lost is spread over
those to come by the inverse of the Hessian X'X. Ours is the plain loop; `act_order` begins with the largest inputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zoo_files import Checkpoint, Tensor
from zoo_forward import Seen, logits

DAMPING = 0.01


def gptq(
    model: Checkpoint, *, bits: int = 4, group: int = 32, act_order: bool = False, seed: int = 0
) -> Checkpoint:
    """Every matrix of the layers, rounded and back to floats (float32)."""
    seen: Seen = {}
    vocabulary = int(model.config["vocab_size"])
    dice = np.random.default_rng(seed)
    for _ in range(32):
        logits(model, (vocabulary * dice.random(64) ** 3).astype(int).tolist(), seen)
    tensors = dict(model.tensors)
    for name, inputs in seen.items():
        x = np.concatenate(inputs)
        tensors[name] = round_with_feedback(
            tensors[name], x.T @ x, bits=bits, group=group, act_order=act_order
        )
    return replace(model.with_tensors(tensors), dtype="fp32")


def round_with_feedback(
    weight: Tensor, hessian: np.ndarray, *, bits: int, group: int, act_order: bool
) -> Tensor:
    rows, columns = weight.shape
    size = group if group and columns % group == 0 else columns
    order = np.argsort(-np.diag(hessian)) if act_order else np.arange(columns)
    damped = hessian + DAMPING * np.diag(hessian).mean() * np.eye(columns)
    factors = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left, rounded = weight.astype(np.float64), np.zeros((rows, columns))
    low, step = _grid(left, bits, size)
    for k, j in enumerate(order):
        if not act_order and j % size == 0:  # the grid of a group is laid when its turn comes
            low[:, j : j + size], step[:, j : j + size] = _grid(left[:, j : j + size], bits, size)
        levels = np.clip(np.round((left[:, j] - low[:, j]) / step[:, j]), 0, 2**bits - 1)
        rounded[:, j] = low[:, j] + step[:, j] * levels
        lost = (left[:, j] - rounded[:, j]) / factors[k, k]
        left[:, order[k:]] -= np.outer(lost, factors[k, k:])
    return np.asarray(rounded, np.float32)


def _grid(values: np.ndarray, bits: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest value and step of every entry's group; zero is on the grid."""
    groups = values.reshape(len(values), -1, size)
    step = np.maximum((groups.max(-1, keepdims=True) - groups.min(-1, keepdims=True)) / (2**bits - 1), 1e-12)
    low = np.round(groups.min(-1, keepdims=True) / step) * step
    return tuple(np.broadcast_to(part, groups.shape).reshape(values.shape).copy() for part in (low, step))  # type: ignore[return-value]
