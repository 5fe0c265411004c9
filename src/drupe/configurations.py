"""Known real configurations: facts read out of published packages, with where each stands.

``data/configurations.tsv`` is written by benchmarks/build_configurations.py and read when somebody asks, not before.
It is a convenience sample: what open packages happen to ship, not a census of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources

from drupe.graph import FIELDS, Graph, agree

SIZES = (
    *("hidden", "layers", "decoder_layers", "heads", "kv_heads", "head_dim", "ffn", "experts"),
    *("experts_per_token", "expert_ffn", "shared_experts", "vocab", "window", "theta"),
)
SHAPING = ("hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "experts", "expert_ffn")
"""Sizes that decide whether weights fit. Vocabularies grow by added tokens and padding."""


@dataclass(frozen=True, slots=True)
class Package:
    """Where rows come from: a pinned file of a package index."""

    name: str
    version: str
    file: str
    sha256: str
    licence: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """One real configuration. ``switches``: values of the plain switches that stand in the default of its class."""

    name: str
    model_type: str
    package: Package
    place: str
    sizes: Mapping[str, float]
    graph: Graph
    switches: Mapping[str, int]
    also: int
    """Further published models with the same graph and sizes from the same maker, or the same from two packages."""

    @property
    def title(self) -> str:
        """How it is named in a sentence."""
        return self.name

    @property
    def provenance(self) -> str:
        """Package, version, file and line or class."""
        return f"{self.package.name}=={self.package.version}: {self.place}"


@dataclass(frozen=True)
class Table:
    """All rows, in the order of the file."""

    rows: tuple[Configuration, ...]
    effects: Mapping[str, Mapping[str, Mapping[str, str]]]
    """Model type -> switch -> answers, measured on its class where the general rule fails."""

    @cached_property
    def by_type(self) -> Mapping[str, Configuration]:
        """Model type -> the default configuration of its class."""
        found: dict[str, Configuration] = {}
        for row in self.rows:
            if row.package.name == "transformers":
                found.setdefault(row.model_type, row)
        return found

    def sharing(self, graph: Graph) -> tuple[Configuration, ...]:
        """The rows whose graph does not contradict this one."""
        return tuple(row for row in self.rows if agree(row.graph, graph))


def same_sizes(mine: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    """Whether the sizes that both state and that shape matrices are equal; at least depth and width are."""
    shared = [name for name in SHAPING if name in mine and name in theirs]
    return {"hidden", "layers"} <= set(shared) and all(mine[name] == theirs[name] for name in shared)


@cache
def table() -> Table:
    """The shipped table."""
    text = (resources.files("drupe") / "data" / "configurations.tsv").read_text(encoding="utf-8")
    return parse(text.splitlines())


def parse(lines: Iterable[str]) -> Table:
    """Check and read the lines of a table. Raises ValueError naming the line."""
    packages: dict[str, Package] = {}
    graphs: dict[str, Graph] = {}
    rows: list[Configuration] = []
    effects: dict[str, dict[str, Mapping[str, str]]] = {}
    readers: Mapping[str, Callable[[list[str]], None]] = {
        "package": lambda cells: packages.__setitem__(cells[0], Package(*cells[1:])),
        "graph": lambda cells: graphs.__setitem__(cells[0], _graph(cells[1])),
        "row": lambda cells: rows.append(_row(cells, packages, graphs)),
        "effect": lambda cells: effects.setdefault(cells[0], {}).__setitem__(cells[1], _words(cells[2])),
    }
    for number, line in enumerate(lines, start=1):
        kind, *cells = line.split("\t")
        if not line or line.startswith("#"):
            continue
        try:
            readers[kind](cells)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"configurations, line {number}: {error!r}") from None
    return Table(tuple(rows), effects)


def _graph(text: str) -> Graph:
    words = text.split(" ")
    return Graph(**dict(zip(FIELDS, words, strict=True)))


def _words(text: str) -> dict[str, str]:
    words = dict(_pairs(text))
    if not set(words) <= set(FIELDS):
        raise ValueError(f"unknown questions {sorted(set(words) - set(FIELDS))}")
    return words


def _row(cells: list[str], packages: Mapping[str, Package], graphs: Mapping[str, Graph]) -> Configuration:
    name, model_type, package, place, sizes, graph, switches, also = cells
    numbers = {SIZES[int(key)]: float(value) for key, value in _pairs(sizes)}
    return Configuration(
        name=name,
        model_type=model_type,
        package=packages[package],
        place=place,
        sizes=numbers,
        graph=graphs[graph],
        switches={key: int(value) for key, value in _pairs(switches)},
        also=int(also),
    )


def _pairs(text: str) -> Iterable[tuple[str, str]]:
    for pair in filter(None, text.split(" ")):
        key, _, value = pair.partition("=")
        yield key, value


def lines_of(whole: Table, header: Iterable[str]) -> list[str]:
    """The canonical lines of a table, for the script that writes it."""
    listed = whole.rows
    packages = {
        row.package: f"p{place}" for place, row in enumerate({row.package: row for row in listed}.values())
    }
    graphs = {graph: f"g{place}" for place, graph in enumerate(dict.fromkeys(row.graph for row in listed))}
    lines = [f"# {line}".rstrip() for line in header]
    for package, key in packages.items():
        pinned = (package.name, package.version, package.file, package.sha256, package.licence)
        lines.append("\t".join(("package", key, *pinned)))
    lines += [f"graph\t{key}\t{' '.join(graph.words())}" for graph, key in graphs.items()]
    for row in listed:
        sizes = " ".join(f"{SIZES.index(name)}={row.sizes[name]:.10g}" for name in SIZES if name in row.sizes)
        switches = " ".join(f"{key}={value}" for key, value in sorted(row.switches.items()))
        cells = (
            row.name,
            row.model_type,
            packages[row.package],
            row.place,
            sizes,
            graphs[row.graph],
            switches,
        )
        lines.append("\t".join(("row", *cells, str(row.also))))
    for model_type, turned in sorted(whole.effects.items()):
        for key, words in sorted(turned.items()):
            said = " ".join(f"{name}={word}" for name, word in sorted(words.items()))
            lines.append(f"effect\t{model_type}\t{key}\t{said}")
    return lines
