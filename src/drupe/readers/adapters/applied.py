"""A base model with an adapter applied to it when it is read. Nothing is merged on disk, the base may be quantised.

As PEFT merges (github.com/huggingface/peft, tuners/lora/layer.py, lora/variants.py, ia3/layer.py), in float32: LoRA
W + s B A; DoRA m (W + s B A) / |W + s B A|, the norm over the inputs of each output; IA3 W times the vector, and the
bias too where the vector is of outputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from drupe.errors import FormatError, UsageError
from drupe.readers.adapters.fit import Outcome, fit
from drupe.readers.adapters.interface import MAGNITUDE, Change, Hadamard, LowRank, Method
from drupe.readers.adapters.select import AdapterFile
from drupe.readers.adapters.settings import Start
from drupe.readers.interface import FloatArray, TensorInfo, WeightFile, Window
from drupe.readers.wrapping import Wrapping, headers_of


@dataclass(frozen=True, slots=True)
class _Edit:
    """What happens to one tensor of the base, by name of the adapter's tensors."""

    change: str
    turned: bool = False
    """The base stores the transpose of what the adapter adds."""
    magnitude: str | None = None
    is_bias: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of the adapter that take part."""
        return (self.change,) if self.magnitude is None else (self.change, self.magnitude)


@dataclass(frozen=True, slots=True)
class AppliedFile(Wrapping):
    """The tensors of ``base``, those that ``edits`` names changed as ``adapter`` says."""

    base: WeightFile
    adapter: AdapterFile
    tensors: Mapping[str, TensorInfo]
    edits: Mapping[str, _Edit]

    @property
    def inside(self) -> Sequence[WeightFile]:
        """Both."""
        return (self.base, self.adapter)

    @property
    def format(self) -> str:
        """Of the base."""
        return self.base.format

    @property
    def metadata(self) -> Mapping[str, str]:
        """Of the base."""
        return self.base.metadata

    @property
    def headers(self) -> Mapping[str, bytes]:
        """Of the base."""
        return headers_of(self.base)

    def read(self, windows: Sequence[Window]) -> list[FloatArray]:
        """The values of each window; the base and the adapter are read once each."""
        wide = [self._wide(window) for window in windows]
        saved = [self._is_saved(window.tensor) for window in windows]
        plain = iter(self.base.read([w for w, whole in zip(wide, saved, strict=True) if not whole]))
        asked = [need for window in wide for need in self._asked(window)]
        changes = iter(self.adapter.read(asked))
        found = []
        for window, larger, whole in zip(windows, wide, saved, strict=True):
            values = None if whole else next(plain)
            parts = [next(changes) for _ in self._asked(larger)]
            edited = cast(FloatArray, values) if not parts else self._edit(larger, values, parts)
            down, across = larger.row_start, larger.column_start
            rows = slice(window.row_start - down, window.row_stop - down)
            columns = slice(window.column_start - across, window.column_stop - across)
            found.append(np.ascontiguousarray(edited[rows, columns], np.float32))
        return found

    def _is_saved(self, tensor: str) -> bool:
        edit = self.edits.get(tensor)
        return edit is not None and self._change(edit).method is Method.WHOLE

    def _change(self, edit: _Edit) -> Change:
        return self.adapter.changes[edit.change]

    def _wide(self, window: Window) -> Window:
        """The norms of DoRA need all inputs of an output: whole rows, or whole columns of a transposed one."""
        info, edit = self.tensors[window.tensor], self.edits.get(window.tensor)
        rows, columns = info.matrix_shape
        inside = 0 <= window.row_start <= window.row_stop <= rows
        if not (inside and 0 <= window.column_start <= window.column_stop <= columns):
            raise FormatError(f"{window} lies outside of {rows} x {columns}", where=info.file)
        if edit is None or edit.magnitude is None:
            return window
        if self._outputs_are_columns(edit):
            return replace(window, row_start=0, row_stop=rows)
        return replace(window, column_start=0, column_stop=columns)

    def _outputs_are_columns(self, edit: _Edit) -> bool:
        change = self._change(edit)
        own = isinstance(change, LowRank) and change.turned
        return own != edit.turned

    def _asked(self, window: Window) -> list[Window]:
        """What is read of the adapter for a window of the base."""
        edit = self.edits.get(window.tensor)
        if edit is None:
            return []
        change = self._change(edit)
        rows, columns = (window.row_start, window.row_stop), (window.column_start, window.column_stop)
        if change.method is Method.IA3:
            return [Window(edit.change, 0, size[0], 0, size[1]) for size in (change.info.matrix_shape,)]
        if edit.turned:
            rows, columns = columns, rows
        asked = [Window(edit.change, *rows, *columns)]
        if edit.magnitude is not None:
            size = self.adapter.tensors[edit.magnitude].matrix_shape
            asked.append(Window(edit.magnitude, 0, size[0], 0, size[1]))
        return asked

    def _edit(self, window: Window, values: FloatArray | None, parts: Sequence[FloatArray]) -> FloatArray:
        edit = self.edits[window.tensor]
        change = self._change(edit)
        if values is None:
            return parts[0]
        if change.method is Method.IA3:
            return self._scaled(window, values, parts[0], edit)
        total: FloatArray = values + (parts[0].T if edit.turned else parts[0])
        if edit.magnitude is None:
            return total
        by_column = self._outputs_are_columns(edit)
        norms = np.linalg.norm(total, axis=0 if by_column else 1)
        first, last = (
            (window.column_start, window.column_stop) if by_column else (window.row_start, window.row_stop)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = parts[1].ravel()[first:last] / norms
        scaled: FloatArray = total * (factors[None, :] if by_column else factors[:, None])
        return scaled

    def _scaled(self, window: Window, values: FloatArray, vector: FloatArray, edit: _Edit) -> FloatArray:
        """IA3: the vector runs along the side of its length; of a square matrix its own shape tells which."""
        rows, columns = self.tensors[window.tensor].matrix_shape
        flat = vector.ravel()
        if edit.is_bias:
            return values * flat[window.column_start : window.column_stop]
        by_row = _by_row(self._change(edit).info.shape, (rows, columns), edit.turned)
        if by_row:
            return values * flat[window.row_start : window.row_stop, None]
        spread = np.repeat(flat, columns // flat.size)  # one factor for all values of a channel
        return values * spread[window.column_start : window.column_stop]


def _by_row(vector: tuple[int, ...], sides: tuple[int, int], turned: bool) -> bool:
    """Whether a vector of IA3 scales rows: (n, 1) is of outputs; convolutions write (1, n), told by its length."""
    count = int(np.prod(vector))
    if sides[0] != count:
        return False
    if sides[1] != count:
        return True
    return (vector[0] == count) != turned


def apply(base: WeightFile, adapter: AdapterFile, where: str) -> AppliedFile:
    """The base with the adapter applied. Raises UsageError when it does not fit, naming what and why.

    ``where``: locator of the adapter.
    """
    if adapter.start is Start.TAKEN_OUT:
        raise UsageError(
            "this adapter started as a part of its base, which its library takes out of the base first",
            where=where,
            hint="merge it with its own library, then compare the merged model",
        )
    found = fit(adapter.tensors.values(), base.tensors.values())
    if found.outcome is not Outcome.FITS:
        what = "the base has no" if found.outcome is Outcome.OTHER_NAMES else "other shapes:"
        more = f" and {found.count - len(found.wrong)} more" if found.count > len(found.wrong) else ""
        raise UsageError(
            f"the adapter does not fit this base: {what} {'; '.join(found.wrong)}{more}",
            where=where,
            hint=f"it declares the base {adapter.facts.base!r}"
            if adapter.facts.base
            else "give its own base model",
        )
    if adapter.skipped:
        name = next(iter(adapter.skipped))
        what = f"{len(adapter.skipped)} tensors of this adapter are of a kind that is not read, such as {name[:80]!r}"
        raise UsageError(
            what, where=where, hint="merge it with its own library, then compare the merged model"
        )
    return _applied(base, adapter, found.places, found.added)


def _applied(
    base: WeightFile, adapter: AdapterFile, places: Mapping[str, str], added: Sequence[str]
) -> AppliedFile:
    magnitudes = {place: name for name, place in places.items() if name.endswith(MAGNITUDE)}
    edits: dict[str, _Edit] = {}
    taken: dict[str, list[str]] = defaultdict(list)
    for name, place in places.items():
        if name in magnitudes.values():
            continue
        taken[place].append(name)
        change, info = adapter.changes[name], base.tensors[place]
        edits[place] = _Edit(name, _is_turned(change, info), magnitudes.get(place))
        bias = f"{place.removesuffix('.weight')}.bias"
        if change.method is Method.IA3 and _scales_bias(change, info, base.tensors.get(bias)):
            edits[bias] = _Edit(name, is_bias=True)
    twice = [names for names in taken.values() if len(names) > 1]
    if twice:
        raise FormatError(f"{twice[0][0][:80]!r} and {twice[0][1][:80]!r} change one tensor")
    tensors = {name: _info(info, adapter, edits.get(name)) for name, info in base.tensors.items()}
    for name in added:  # a new head
        tensors[name], edits[name] = adapter.tensors[name], _Edit(name)
    return AppliedFile(base, adapter, tensors, edits)


def _is_turned(change: Change, info: TensorInfo) -> bool:
    """Whether the base stores the transpose; a square matrix tells nothing, the settings are believed."""
    if not isinstance(change, LowRank | Hadamard) or len(info.shape) != 2:
        return False
    mine, theirs = change.info.matrix_shape, info.matrix_shape
    return mine != theirs and mine == theirs[::-1]


def _scales_bias(change: Change, info: TensorInfo, bias: TensorInfo | None) -> bool:
    shape = change.info.shape
    return bias is not None and bias.size == shape[0] == int(np.prod(shape)) and info.size > 0


def _info(info: TensorInfo, adapter: AdapterFile, edit: _Edit | None) -> TensorInfo:
    """A changed tensor lies on no grid any more; one that was saved whole is as the adapter stores it."""
    if edit is None:
        return info
    change = adapter.changes[edit.change]
    if change.method is Method.WHOLE:
        return replace(change.info, name=info.name, layout=info.layout)
    if not info.is_quantised:
        return info
    return replace(info, is_quantised=False, dtype="F32")
