"""Model: a lazy view of the parts that exist; an absent part says why.

Opening a model reads headers only. Values are read when asked for, through :meth:`Model.read`, which undoes
storage order: every :class:`Matrix` has output units as rows, whatever the file format.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from drupe.readers.card import Documents, read_documents
from drupe.readers.code import CodeFiles, read_code
from drupe.readers.config import Config, read_config
from drupe.readers.config import from_gguf as config_from_gguf
from drupe.readers.interface import Absent, FloatArray, Layout, TensorInfo, WeightFile, Window
from drupe.readers.tokenizer import Tokenizer, read_tokenizer
from drupe.readers.tokenizer import from_gguf as tokenizer_from_gguf
from drupe.readers.weights import open_weights
from drupe.roles import Role, Roles, assign_roles
from drupe.sources.interface import Tree

MIN_ROWS, MIN_COLUMNS = 8, 32
"""Smaller tensors (and all vectors) carry too few values to be compared as matrices."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix, rows = output units; a fused tensor gives several.

    ``row_start`` is the first of its rows within the tensor, counted in canonical orientation.
    """

    tensor: str
    rows: int
    columns: int
    row_start: int = 0
    transposed: bool = False
    role: str | None = None
    layer: int | None = None

    @property
    def label(self) -> str:
        """``3.up`` when the role is known, else the tensor's name."""
        if self.role is None:
            return self.tensor
        return self.role if self.layer is None else f"{self.layer}.{self.role}"

    @property
    def size(self) -> int:
        """Number of values."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of a matrix, in canonical orientation; the stop is exclusive."""

    matrix: Matrix
    row_start: int
    row_stop: int
    column_start: int
    column_stop: int


@dataclass(slots=True)
class Model:
    """One opened model. ``used`` counts the weight values that were read, by tensor."""

    tree: Tree
    weights: WeightFile | Absent
    documents: Documents | Absent
    code: CodeFiles | Absent
    config: Config | Absent
    tokenizer: Tokenizer | Absent
    roles: Roles
    matrices: tuple[Matrix, ...]
    used: dict[str, int] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of weight values of all tensors."""
        return 0 if isinstance(self.weights, Absent) else sum(t.size for t in self.weights.tensors.values())

    @property
    def stored_bytes(self) -> int:
        """Size of all tensors as stored."""
        if isinstance(self.weights, Absent):
            return 0
        return int(sum(info.size * info.stored_bits for info in self.weights.tensors.values()) / 8)

    def read(self, blocks: Sequence[Block]) -> list[FloatArray]:
        """The values of each block, (rows, columns) float32, in one pass over the files."""
        assert not isinstance(self.weights, Absent)
        windows = [_window(block) for block in blocks]
        values = self.weights.read(windows)
        for window in windows:
            read = (window.row_stop - window.row_start) * (window.column_stop - window.column_start)
            size = self.weights.tensors[window.tensor].size
            self.used[window.tensor] = min(size, max(self.used.get(window.tensor, 0), read))
        return [
            array.T if block.matrix.transposed else array for block, array in zip(blocks, values, strict=True)
        ]

    def load(self, matrix: Matrix) -> FloatArray:
        """All values of one matrix."""
        return self.read([Block(matrix, 0, matrix.rows, 0, matrix.columns)])[0]

    def load_vector(self, tensor: str) -> FloatArray:
        """All values of one tensor, flat."""
        assert not isinstance(self.weights, Absent)
        rows, columns = self.weights.tensors[tensor].matrix_shape
        self.used[tensor] = rows * columns
        return self.weights.read([Window(tensor, 0, rows, 0, columns)])[0].ravel()


def _window(block: Block) -> Window:
    top = block.matrix.row_start
    rows = (top + block.row_start, top + block.row_stop)
    columns = (block.column_start, block.column_stop)
    if block.matrix.transposed:
        rows, columns = columns, rows
    return Window(block.matrix.tensor, *rows, *columns)


def open_model(tree: Tree, extra_documents: Sequence[tuple[str, bytes]] = ()) -> Model:
    """Open the parts of a model folder, file or repository; reads headers and small files only.

    Raises FormatError (and its kin) when a part is broken; a missing part is Absent.
    """
    weights = open_weights(tree)
    config, tokenizer = read_config(tree), read_tokenizer(tree)
    if not isinstance(weights, Absent) and weights.format == "gguf":  # its header carries both
        embedded = _embedded(weights)
        config = config_from_gguf(embedded) if isinstance(config, Absent) else config
        if isinstance(tokenizer, Absent) and "tokenizer.ggml.tokens" in embedded:
            tokenizer = tokenizer_from_gguf(embedded)
    tensors = {} if isinstance(weights, Absent) else weights.tensors
    auxiliary: frozenset[str] = getattr(weights, "auxiliary", frozenset())
    roles = assign_roles(info for name, info in tensors.items() if name not in auxiliary)
    matrices = tuple(list_matrices([t for n, t in tensors.items() if n not in auxiliary], roles))
    return Model(
        tree=tree,
        weights=weights,
        documents=read_documents(tree, extra_documents),
        code=read_code(tree),
        config=config,
        tokenizer=tokenizer,
        roles=roles,
        matrices=matrices,
    )


def _embedded(weights: WeightFile) -> dict[str, object]:
    """The metadata of a GGUF header, arrays decoded."""
    from drupe.readers.gguf import GgufFile
    from drupe.readers.gguf_header import GgufArray

    assert isinstance(weights, GgufFile)
    return {
        key: weights.array(key) if isinstance(value, GgufArray) else value
        for key, value in weights.fields.items()
    }


def list_matrices(tensors: Sequence[TensorInfo], roles: Roles) -> Iterator[Matrix]:
    """Every tensor that is large enough, fused ones split, in the order given."""
    turned = _turned(tensors, roles)
    for info in tensors:
        if info.dtype in _INTEGERS and not info.is_quantised:
            continue
        role = roles.by_tensor.get(info.name)
        transposed = role.transposed if role else False
        if info.layout is not Layout.UNKNOWN:
            transposed = info.layout is Layout.IN_OUT
        elif role and (role.name.rpartition(".")[0], role.layer is not None) in turned:
            transposed = not transposed
        rows, columns = info.matrix_shape
        if transposed:
            rows, columns = columns, rows
        for start, height, name in _split(role, rows, columns):
            if height >= MIN_ROWS and columns >= MIN_COLUMNS:
                layer = role.layer if role else None
                yield Matrix(info.name, height, columns, start, transposed, name, layer)


def _turned(tensors: Sequence[TensorInfo], roles: Roles) -> frozenset[tuple[str, bool]]:
    """Which matrices stand the other way round than their names say: (stack, in layers or outside).

    The norm gains tell the hidden width of a stack; rows of an FFN input matrix and of a token table have it.
    """
    shapes: dict[tuple[str, str], tuple[int, int]] = {}
    widths: dict[str, set[int]] = {}
    for info in tensors:
        role = roles.by_tensor.get(info.name)
        if role is None:
            continue
        stack, _, last = role.name.rpartition(".")
        if len(info.shape) == 2:
            rows, columns = info.shape[::-1] if role.transposed else info.shape
            shapes.setdefault((stack, last), (rows, columns))
        elif last in ("norm1", "norm2", "final_norm"):
            widths.setdefault(stack, set()).add(info.size)
    found = set()
    for stack, sizes in widths.items():
        for inside, last in ((True, "up"), (False, "embed")):
            rows, columns = shapes.get((stack, last), (0, 0))
            if sizes == {rows} and columns != rows:
                found.add((stack, inside))
    return frozenset(found)


_INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL"})


def _split(role: Role | None, rows: int, columns: int) -> list[tuple[int, int, str | None]]:
    """(first row, rows, role) of each part of a possibly fused tensor (q+k+v, gate+up)."""
    if role is None:
        return [(0, rows, None)]
    stack, _, last = role.name.rpartition(".")
    parts = last.split("+")
    if len(parts) == 1:
        return [(0, rows, role.name)]
    first = columns if len(parts) == 3 and rows > columns else rows // len(parts)
    rest = (rows - first) // max(len(parts) - 1, 1)
    heights = [first] + [rest] * (len(parts) - 1)
    starts = [sum(heights[:place]) for place in range(len(parts))]
    prefix = f"{stack}." if stack else ""
    return [(s, h, prefix + p) for s, h, p in zip(starts, heights, parts, strict=True)]
