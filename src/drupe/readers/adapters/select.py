"""Is a weight file an adapter? Its tensors as changes of the base's tensors.

The tensors are what counts: a rank or a method that the settings claim otherwise is reported, never used. A rank
above the sides of its matrix is lawful and read as any other; one of 0 is damage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from drupe.errors import FormatError
from drupe.messages import Message, msg
from drupe.readers.adapters.interface import (
    MAGNITUDE,
    AdapterFacts,
    Change,
    Hadamard,
    LowRank,
    Method,
    Scale,
    Stored,
)
from drupe.readers.adapters.keys import UNREAD, Key, is_likely, parse
from drupe.readers.adapters.settings import Settings, Start, read_settings
from drupe.readers.interface import (
    Absent,
    Flag,
    FlagKind,
    FloatArray,
    Layout,
    TensorInfo,
    WeightFile,
    Window,
    check_shape,
)
from drupe.readers.wrapping import Wrapping, flags_of
from drupe.sources.interface import Tree

MIN_SHARE = 0.5
"""Share of a file's tensors that must belong to an adapter where no settings say that it is one."""
_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


@dataclass(frozen=True, slots=True)
class AdapterFile(Wrapping):
    """An adapter as a weight file: each tensor has the name and shape of what it changes in the base.

    Values are the difference to the base (a vector of factors for IA3, the tensor itself where it was saved whole).
    """

    stored: WeightFile
    tensors: Mapping[str, TensorInfo]
    changes: Mapping[str, Change]
    skipped: Mapping[str, Message]
    facts: AdapterFacts
    start: Start = Start.RANDOM

    @property
    def inside(self) -> Sequence[WeightFile]:
        """The container."""
        return (self.stored,)

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Of the container, and one for each tensor that is not read."""
        files = self.stored.tensors
        unread = (
            Flag(FlagKind.NOT_READ, files[name].file, name, reason=str(why))
            for name, why in self.skipped.items()
        )
        return (*flags_of(self.stored), *unread)

    def read(self, windows: Sequence[Window]) -> list[FloatArray]:
        """The values of each window, from the needed rows and columns of the factors, read in one pass."""
        needs: list[Window] = []
        slices = []
        for window in windows:
            info = self.tensors[window.tensor]
            rows, columns = info.matrix_shape
            inside = 0 <= window.row_start <= window.row_stop <= rows
            if not (inside and 0 <= window.column_start <= window.column_stop <= columns):
                raise FormatError(f"{window} lies outside of {rows} x {columns}", where=info.file)
            first = len(needs)
            needs.extend(self.changes[window.tensor].needs(window))
            slices.append(slice(first, len(needs)))
        parts = self.stored.read(needs)
        with np.errstate(over="ignore", invalid="ignore"):  # damage of a factor is damage of the product
            return [
                self.changes[window.tensor].values(parts[part]).astype(np.float32, copy=False)
                for window, part in zip(windows, slices, strict=True)
            ]


def read_adapter(tree: Tree, file: WeightFile) -> AdapterFile | Absent | None:
    """The file as an adapter; None when it is none, Absent when it is one of which nothing can be read.

    Raises FormatError when factors do not belong together, UnsupportedError for settings that are not read.
    """
    if not any(map(is_likely, file.tensors)):
        return None
    keys = {name: parse(name) for name in file.tensors}
    marked = sum(key.slot not in (None, "alpha") for key in keys.values())
    if not marked or any(_is_whole(name, key) for name, key in keys.items()):
        return None
    settings = read_settings(tree, file)
    if settings.method is None and marked < MIN_SHARE * len(keys):
        return None
    return _build(file, keys, settings)


def _is_whole(name: str, key: Key) -> bool:
    """Whether a tensor is a weight of the base itself: the file is a whole model with its adapters beside it."""
    return key.slot is None and ".base_layer." in name and not name.endswith(".bias")


def _build(file: WeightFile, keys: Mapping[str, Key], settings: Settings) -> AdapterFile | Absent:
    modules: dict[str, dict[str, str]] = {}
    skipped: dict[str, Message] = {}
    changes: dict[str, Change] = {}
    for name, key in keys.items():
        if key.slot is None:
            changes[key.module] = _stored(file, name, key.module, Method.WHOLE)
        elif key.slot == UNREAD:
            skipped[name] = msg("adapters.unread")
        elif modules.setdefault(key.module, {}).setdefault(key.slot, name) != name:
            raise FormatError(
                f"{key.module[:80]!r} has two tensors {key.slot!r}", where=file.tensors[name].file
            )
    saved = len(changes)
    unread = {keys[name].module for name in skipped}
    for module, slots in modules.items():
        if module in unread:  # half of a change would be another one
            skipped.update((name, msg("adapters.unread")) for name in slots.values())
            continue
        for change in _changes(file, module, slots, settings):
            if change.info.name in changes:
                raise FormatError(f"{change.info.name[:80]!r} is changed twice", where=change.info.file)
            changes[change.info.name] = change
    if not changes:
        name = next(iter(skipped))
        return Absent(msg("adapters.none_read", name=name, count=len(skipped)))
    tensors = {name: change.info for name, change in changes.items()}
    facts = _facts(file, changes, keys, settings, saved, len(unread))
    return AdapterFile(file, tensors, changes, skipped, facts, settings.start)


def _changes(file: WeightFile, module: str, slots: Mapping[str, str], settings: Settings) -> list[Change]:
    found: list[Change] = []
    pair = [("down", "up"), ("table_down", "table_up")]
    for down, up in pair:
        if down in slots or up in slots:
            _complete(file, module, slots, (down, up))
            found.append(_low_rank(file, module, slots, settings, down == "table_down"))
    if any(slot in slots for slot in _HADAMARD):
        _complete(file, module, slots, _HADAMARD)
        found.append(_hadamard(file, module, slots, settings))
    if "ia3" in slots:
        found.append(_stored(file, slots["ia3"], f"{module}.weight", Method.IA3))
    if not found:
        what = f"{module[:80]!r} has {sorted(slots)} and nothing that they belong to"
        raise FormatError(what, where=_file(file, slots))
    if "magnitude" in slots:
        found.append(_stored(file, slots["magnitude"], module + MAGNITUDE, Method.WHOLE))
    return found


def _file(file: WeightFile, slots: Mapping[str, str]) -> str:
    return file.tensors[next(iter(slots.values()))].file


def _complete(file: WeightFile, module: str, slots: Mapping[str, str], wanted: Sequence[str]) -> None:
    missing = [slot for slot in wanted if slot not in slots]
    if missing:
        what = f"{module[:80]!r} lacks its factor {missing[0]!r}"
        raise FormatError(what, where=_file(file, slots))


def _low_rank(
    file: WeightFile, module: str, slots: Mapping[str, str], settings: Settings, table: bool
) -> LowRank:
    down, up = (slots[slot] for slot in (("table_down", "table_up") if table else ("down", "up")))
    a, b = file.tensors[down], file.tensors[up]
    rank = _multiply(a, b, module)
    turned = table or (settings.transposed and len(a.shape) == 2)
    shape = (b.shape[0], *a.shape[1:])
    info = _info(module, shape[::-1] if turned else shape, f"{Method.LORA}{rank}", (a, b))
    return LowRank(info, down, up, rank, _scale(slots, settings, module, rank), turned)


def _multiply(a: TensorInfo, b: TensorInfo, module: str) -> int:
    """The rank at which B and A meet."""
    rank = a.shape[0] if len(a.shape) >= 2 else 0
    fits = len(b.shape) >= 2 and b.shape[1] == rank and all(extent == 1 for extent in b.shape[2:])
    if not fits or rank == 0:
        what = f"the factors of {module[:80]!r} do not multiply: {b.shape} by {a.shape}"
        raise FormatError(what, where=a.file)
    return rank


def _hadamard(file: WeightFile, module: str, slots: Mapping[str, str], settings: Settings) -> Hadamard:
    b1, a1, b2, a2 = (file.tensors[slots[slot]] for slot in _HADAMARD)
    ranks = _multiply(a1, b1, module), _multiply(a2, b2, module)
    if (b1.shape[0], a1.shape[1:]) != (b2.shape[0], a2.shape[1:]):
        raise FormatError(f"the two products of {module[:80]!r} differ in shape", where=a1.file)
    shape = (b1.shape[0], *a1.shape[1:])
    info = _info(module, shape, f"{Method.LOHA}{ranks[0]}", (b1, a1, b2, a2))
    names = (b1.name, a1.name, b2.name, a2.name)
    return Hadamard(info, names, ranks[0], _scale(slots, settings, module, ranks[0]), ranks)


def _scale(slots: Mapping[str, str], settings: Settings, module: str, rank: int) -> Scale:
    if "alpha" in slots:
        return Scale(1.0, slots["alpha"], rank)
    return Scale(settings.factor(module, rank))


def _info(module: str, shape: Sequence[int], dtype: str, factors: Sequence[TensorInfo]) -> TensorInfo:
    where = factors[0].file
    extents = check_shape(shape, f"{where}: {module[:80]}")
    size = max(1, prod(extents))
    bits = sum(factor.size * factor.stored_bits for factor in factors) / size
    return TensorInfo(f"{module}.weight", extents, dtype, where, Layout.UNKNOWN, bits)


def _stored(file: WeightFile, name: str, seen_as: str, method: Method) -> Stored:
    info = file.tensors[name]
    dtype = method.value + info.dtype if method is Method.IA3 else info.dtype
    return Stored(replace(info, name=seen_as, dtype=dtype), name, method)


def _facts(
    file: WeightFile,
    changes: Mapping[str, Change],
    keys: Mapping[str, Key],
    settings: Settings,
    saved: int,
    unread: int,
) -> AdapterFacts:
    ranks = Counter(change.rank for change in changes.values() if change.rank)
    methods = dict.fromkeys(_method_name(change) for change in changes.values())
    if any(name.endswith(MAGNITUDE) for name in changes):
        methods = {("dora" if name == "lora" else name): None for name in methods}
    layouts = Counter(key.layout for key in keys.values() if key.slot is not None)
    layout = layouts.most_common(1)[0][0]
    if layout == "diffusers" and settings.method is not None:
        layout = "peft"
    return AdapterFacts(
        layout=layout,
        methods=tuple(sorted(name for name in methods if name)),
        rank=min(ranks, key=lambda rank: (-ranks[rank], rank)) if ranks else 0,
        ranks=tuple(sorted(ranks))[:64],
        stated_rank=settings.rank,
        alpha=settings.alpha if settings.alpha is not None else _first_alpha(file, changes),
        changed=sum(bool(_method_name(change)) for change in changes.values()),
        saved=saved,
        unread=unread,
        stored_values=sum(info.size for info in file.tensors.values()),
        base=settings.base,
        base_digest=settings.base_digest,
    )


def _method_name(change: Change) -> str:
    return change.method.value.strip("_").lower()


def _first_alpha(file: WeightFile, changes: Mapping[str, Change]) -> float | None:
    for change in changes.values():
        scale = None if isinstance(change, Stored) else change.scale
        if scale is not None and scale.alpha is not None:
            if file.tensors[scale.alpha].size != 1:
                raise FormatError(f"{scale.alpha[:80]!r} is no single number", where=change.info.file)
            value = float(scale.of(file.read(scale.needs), change.info.file)) * scale.rank
            return float(f"{value:.6g}")
    return None
