"""Model: a lazy view of the parts that exist; an absent part says why.

Opening a model reads headers only. Values are read when asked for, through :meth:`Model.read`, which undoes
storage order: every :class:`Matrix` has output units as rows, whatever the file format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from drupe.errors import UsageError
from drupe.matrices import Block, Matrix, assemble, list_matrices, windows_of
from drupe.readers.adapters import AdapterFacts, AdapterFile, apply, read_adapter
from drupe.readers.beside import read_beside
from drupe.readers.card import Documents, read_documents
from drupe.readers.code import CodeFiles, read_code
from drupe.readers.config import Config, dialects, read_config, text
from drupe.readers.config import from_gguf as config_from_gguf
from drupe.readers.interface import Absent, Flag, FloatArray, TensorInfo, WeightFile, Window
from drupe.readers.quantised import settings_of, unpack
from drupe.readers.tokenizer import Tokenizer, read_tokenizer
from drupe.readers.tokenizer import from_gguf as tokenizer_from_gguf
from drupe.readers.weights import open_weights
from drupe.readers.wrapping import auxiliary_of, flags_of, headers_of
from drupe.roles import Roles, assign_roles
from drupe.sources.interface import Tree

__all__ = ["Block", "Matrix", "Model", "open_model", "with_adapter"]


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
    applied: Model | None = None
    """The adapter that is applied to the weights when they are read."""
    beside: tuple[Flag, ...] = ()
    """Remarks on files that are none of the weights."""
    used: dict[str, int] = field(default_factory=dict)
    _largest: dict[tuple[str, int, int | None], int] = field(default_factory=dict)

    @property
    def adapter(self) -> AdapterFacts | None:
        """What kind of adapter this is, when it is one alone: its weights are then what it adds to a base."""
        return self.weights.facts if isinstance(self.weights, AdapterFile) else None

    @property
    def flags(self) -> tuple[Flag, ...]:
        """What must be said of the weights, of an adapter that is applied to them, and of the files beside both."""
        weights = () if isinstance(self.weights, Absent) else flags_of(self.weights)
        return (*weights, *self.beside, *(self.applied.beside if self.applied else ()))

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
        tensors = self.weights.tensors
        shapes = [tensors[block.matrix.tensor].shape for block in blocks]
        plans = [windows_of(block, shape) for block, shape in zip(blocks, shapes, strict=True)]
        values = self.weights.read([window for plan in plans for window in plan])
        found = []
        first = 0
        for block, plan, shape in zip(blocks, plans, shapes, strict=True):
            found.append(assemble(block, values[first : first + len(plan)], shape))
            first += len(plan)
            self._count(block)
        return found

    def _count(self, block: Block) -> None:
        """The largest block of every matrix counts."""
        matrix = block.matrix
        read = (block.row_stop - block.row_start) * (block.column_stop - block.column_start)
        key = (matrix.tensor, matrix.row_start, matrix.expert)
        more = read - self._largest.get(key, 0)
        if more > 0:
            assert not isinstance(self.weights, Absent)
            self._largest[key] = read
            size = self.weights.tensors[matrix.tensor].size
            self.used[matrix.tensor] = min(size, self.used.get(matrix.tensor, 0) + more)

    def load(self, matrix: Matrix) -> FloatArray:
        """All values of one matrix."""
        return self.read([Block(matrix, 0, matrix.rows, 0, matrix.columns)])[0]

    def load_vector(self, tensor: str) -> FloatArray:
        """All values of one tensor, flat."""
        assert not isinstance(self.weights, Absent)
        rows, columns = self.weights.tensors[tensor].matrix_shape
        self.used[tensor] = rows * columns
        return self.weights.read([Window(tensor, 0, rows, 0, columns)])[0].ravel()


def open_model(tree: Tree, extra_documents: Sequence[tuple[str, bytes]] = ()) -> Model:
    """Open the parts of a model folder, file or repository; reads headers and small files only.

    Raises FormatError (and its kin) when a part is broken; a missing part is Absent.
    """
    weights = open_weights(tree)
    if not isinstance(weights, Absent):
        weights = read_adapter(tree, weights) or weights
    config, tokenizer = read_config(tree), read_tokenizer(tree)
    if embedded := _embedded(weights):
        config = config_from_gguf(embedded) if isinstance(config, Absent) else config
        if isinstance(tokenizer, Absent) and "tokenizer.ggml.tokens" in embedded:
            tokenizer = tokenizer_from_gguf(embedded)
    if not isinstance(weights, Absent):
        weights = unpack(weights, settings_of(tree, {} if isinstance(config, Absent) else config.raw))
    tensors = {} if isinstance(weights, Absent) else weights.tensors
    auxiliary: frozenset[str] = frozenset() if isinstance(weights, Absent) else auxiliary_of(weights)
    chosen = [info for name, info in tensors.items() if name not in auxiliary]
    roles = assign_roles(chosen, _model_types(config))
    return Model(
        tree=tree,
        weights=weights,
        documents=read_documents(tree, extra_documents),
        code=read_code(tree),
        config=config,
        tokenizer=tokenizer,
        roles=roles,
        matrices=_matrices(chosen, roles, config),
        beside=read_beside(tree, _weight_files(weights)),
    )


def _weight_files(weights: WeightFile | Absent) -> frozenset[str]:
    if isinstance(weights, Absent):
        return frozenset()
    return frozenset({*headers_of(weights), *(info.file for info in weights.tensors.values())})


def _matrices(tensors: Sequence[TensorInfo], roles: Roles, config: Config | Absent) -> tuple[Matrix, ...]:
    heads = None if isinstance(config, Absent) else config.canonical.get("num_attention_heads")
    return tuple(list_matrices(tensors, roles, heads if isinstance(heads, int) else None))


def with_adapter(model: Model, adapter: Model) -> Model:
    """The model with an adapter applied to its weights, lazily: nothing is written.

    Raises UsageError when one side is not what it should be, or the adapter does not fit.
    """
    if not isinstance(adapter.weights, AdapterFile):
        raise UsageError(
            "no adapter that can be read", where=adapter.tree.locator, hint="drupe inspect says what it is"
        )
    if isinstance(model.weights, Absent | AdapterFile):
        raise UsageError("no weights to apply an adapter to", where=model.tree.locator)
    weights = apply(model.weights, adapter.weights, adapter.tree.locator)
    chosen = [info for name, info in weights.tensors.items() if name not in weights.auxiliary]
    matrices = _matrices(chosen, model.roles, model.config)
    return replace(model, weights=weights, matrices=matrices, applied=adapter, used={}, _largest={})


def _model_types(config: Config | Absent) -> frozenset[str]:
    """What the configuration calls the model and its language model."""
    if isinstance(config, Absent):
        return frozenset()
    nested = (config.raw.get(key) for key in dialects().nested)
    inner = (text(value.get("model_type")) for value in nested if isinstance(value, dict))
    return frozenset(name for name in (config.model_type, *inner) if name)


def _embedded(weights: WeightFile | Absent) -> dict[str, object]:
    """The metadata of a GGUF header, arrays decoded: configuration and tokenizer. Empty for other formats."""
    if isinstance(weights, Absent) or weights.format != "gguf":
        return {}
    from drupe.readers.gguf import GgufFile
    from drupe.readers.gguf_header import GgufArray

    if not isinstance(weights, GgufFile):
        return {}
    return {
        key: weights.array(key) if isinstance(value, GgufArray) else value
        for key, value in weights.fields.items()
    }
