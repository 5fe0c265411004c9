"""The tensors of a model as pieces that every naming scheme has: q of layer 3, its bias, the gain of the last norm.

A piece is what one stored tensor holds of one role. Fused tensors hold several, stacks of experts one per expert.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drupe.fused import Part, split
from drupe.matrices import Stored, stored_matrices, widths_of
from drupe.readers.interface import TensorInfo
from drupe.roles import Role, Roles, of_expert

Key = tuple[str, int | None]
"""Role of a piece (``q``, ``q_bias``, ``experts.3.up``, with its tower) and its layer."""

BUFFERS = frozenset({"rotary", "mask", "position_ids"})
"""What a model computes by itself when it is loaded; no parameters."""
_BIAS = "_bias"


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one role lies in a stored tensor: which of its rows (in canonical orientation), of which expert."""

    key: Key
    tensor: str
    part: Part
    columns: int
    transposed: bool
    expert: int | None = None
    whole: bool = True
    """The tensor holds nothing else."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (outputs) and columns."""
        return self.part.rows, self.columns


@dataclass(frozen=True, slots=True)
class Inventory:
    """All pieces of a model by role, in file order; ``unnamed`` tensors have no role that others could know."""

    pieces: Mapping[Key, Piece]
    unnamed: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    paired_rows: bool = False
    """Rows of q and k lie as ``Scheme.paired_rows`` says."""


def inventory(tensors: Sequence[TensorInfo], roles: Roles, heads: int | None) -> Inventory:
    """Take every tensor apart. ``heads``: of the main tower, for layouts that go by groups of heads."""
    infos = {info.name: info for info in tensors}
    stored = {each.info.name: each for each in stored_matrices(tensors, roles)}
    widths = widths_of(list(stored.values()))
    found: dict[Key, Piece] = {}
    unnamed: list[str] = []
    for info in tensors:
        role = roles.by_tensor.get(info.name)
        if role is None or not _is_known(role, roles):
            unnamed.append(info.name)
            continue
        for piece in _pieces(info, role, roles, infos, stored, widths, None if role.stack else heads):
            if piece.key in found and role.name not in BUFFERS:
                unnamed.append(info.name)
            else:
                found.setdefault(piece.key, piece)
    shapes = {info.name: info.shape for info in tensors}
    paired = roles.scheme is not None and roles.scheme.paired_rows
    return Inventory(found, tuple(dict.fromkeys(unnamed)), shapes, paired)


_TOWER = re.compile(r"^tower\d+\.")


def _is_known(role: Role, roles: Roles) -> bool:
    """Whether a naming scheme gives the role; a guess from words and shapes is not enough to move values by."""
    scheme = roles.scheme_of(role.name)
    return scheme is not None and _TOWER.sub("", role.name) in scheme.roles.values()


def _pieces(
    info: TensorInfo,
    role: Role,
    roles: Roles,
    infos: Mapping[str, TensorInfo],
    stored: Mapping[str, Stored],
    widths: Mapping[tuple[str, bool, str], int],
    heads: int | None,
) -> list[Piece]:
    each, suffix = stored.get(info.name), ""
    if len(info.shape) < 2:
        owner, sibling = _owner(info, roles)
        if owner is None or len(owner.parts) == 1:
            return [Piece((role.name, role.layer), info.name, Part(0, info.size, name=role.name), 1, False)]
        role, each, suffix = owner, stored.get(sibling), _BIAS
    if each is None or len(info.shape) > 3:
        return [
            Piece(
                (role.name, role.layer), info.name, Part(0, *info.matrix_shape[:1], name=role.name), 0, False
            )
        ]
    scheme = roles.scheme_of(role.name)
    layout = scheme.fused.get("+".join(role.parts), "stacked") if scheme else "stacked"
    known = (widths.get((role.stack, False, "o")), widths.get((role.stack, each.in_experts, "down")))
    parts = split(role.parts, layout, (each.rows, each.columns), known, heads)
    experts: Sequence[int | None] = range(each.experts) if each.experts and not suffix else (None,)
    columns, turned = (1, False) if suffix else (each.columns, each.transposed)
    return [
        Piece(
            (
                of_expert(role.stack, part.name + suffix, role.expert if expert is None else expert),
                role.layer,
            ),
            info.name,
            part,
            columns,
            turned,
            expert,
            whole=len(parts) == 1 and expert is None,
        )
        for expert in experts
        for part in parts
    ]


def _owner(info: TensorInfo, roles: Roles) -> tuple[Role | None, str]:
    """The matrix whose bias this is: it says what is fused."""
    base, dot, last = info.name.rpartition(".")
    sibling = f"{base}{dot}weight"
    return (roles.by_tensor.get(sibling), sibling) if last == "bias" else (None, "")
