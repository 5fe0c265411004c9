"""Mixtures of several models: spherical, task arithmetic, DARE, TIES (the linear one is in zoo_structure.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from zoo_files import Checkpoint, Tensor


def _mixed(model: Checkpoint, rule: Callable[[str, Tensor], Tensor]) -> Checkpoint:
    tensors = {name: rule(name, values).astype(np.float32) for name, values in model.tensors.items()}
    return model.with_tensors(tensors)


def slerp(model: Checkpoint, *, other: Checkpoint, share: float) -> Checkpoint:
    """Spherical interpolation tensor by tensor; ``share`` of this model (as mergekit's slerp)."""

    def rule(name: str, mine: Tensor) -> Tensor:
        theirs = other.tensors[name]
        cosine = float((mine * theirs).sum() / (np.linalg.norm(mine) * np.linalg.norm(theirs)))
        angle = float(np.arccos(np.clip(cosine, -1, 1)))
        if angle < 1e-4:
            return share * mine + (1 - share) * theirs
        return np.asarray(
            (np.sin(share * angle) * mine + np.sin((1 - share) * angle) * theirs) / np.sin(angle)
        )

    return _mixed(model, rule)


def arithmetic(model: Checkpoint, *, parents: Mapping[str, Checkpoint], scale: float) -> Checkpoint:
    """Task arithmetic: this base plus ``scale`` times the sum of what the parents changed."""
    return _mixed(
        model,
        lambda name, base: base + np.float32(scale) * sum(p.tensors[name] - base for p in parents.values()),
    )


def dare(model: Checkpoint, *, parents: Mapping[str, Checkpoint], drop: float, seed: int = 0) -> Checkpoint:
    """DARE (Yu et al., ICML 2024): a random share of every parent's change is dropped, the rest scaled; averaged."""
    dice = np.random.default_rng(seed)

    def rule(name: str, base: Tensor) -> Tensor:
        total = np.zeros_like(base)
        for parent in parents.values():
            kept = dice.random(base.shape) >= drop
            total += np.where(kept, (parent.tensors[name] - base) / (1 - drop), 0).astype(np.float32)
        return base + total / len(parents)

    return _mixed(model, rule)


def ties(model: Checkpoint, *, parents: Mapping[str, Checkpoint], density: float) -> Checkpoint:
    """TIES (Yadav et al., NeurIPS 2023): trim small changes, elect a sign, average those that agree."""

    def rule(name: str, base: Tensor) -> Tensor:
        changes = np.stack([parent.tensors[name] - base for parent in parents.values()])
        for change in changes:
            change[np.abs(change) < np.quantile(np.abs(change), 1 - density)] = 0
        sign = np.sign(changes.sum(axis=0))
        agree = (np.sign(changes) == sign) & (changes != 0)
        return base + np.asarray((changes * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1))

    return _mixed(model, rule)
