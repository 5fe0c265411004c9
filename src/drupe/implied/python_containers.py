"""Methods of lists, dictionaries and sets."""

from __future__ import annotations

import ast

from drupe.implied.core import Core
from drupe.implied.expressions import hashable
from drupe.implied.operators import compare
from drupe.implied.values import Either, Native, Place, Unknown


class Containers(Core):
    """Methods of lists, dictionaries and sets."""

    def list_method(self, owner: list[object], name: str) -> object:
        """A method of a list."""

        def run(arguments: list[object], keywords: dict[str, object], place: Place) -> object:
            del keywords
            self.touch(owner)
            first = arguments[0] if arguments else None
            if name == "append":
                owner.append(first)
            elif name == "extend":
                items = self.items(first, place)
                owner.extend(items if isinstance(items, list) else [items])
            elif name == "insert" and isinstance(first, int) and len(arguments) > 1:
                owner.insert(first, arguments[1])
            elif name == "pop" and owner:
                at = first if isinstance(first, int) else -1
                return owner.pop(at) if -len(owner) <= at < len(owner) else Unknown("list.pop", place)
            elif name == "reverse":
                owner.reverse()
            elif name == "clear":
                owner.clear()
            elif name == "copy":
                self.budget.charge(len(owner))
                return list(owner)
            elif name == "index":
                found = [i for i, one in enumerate(owner) if _equals(one, first)]
                return found[0] if found else Unknown("list.index", place)
            elif name == "count":
                return sum(_equals(one, first) for one in owner)
            else:
                return Unknown(f"list.{name}", place)
            return None

        return Native(f"list.{name}", run)

    def dict_method(self, owner: dict[object, object], name: str) -> object:
        """A method of a dictionary."""

        def run(arguments: list[object], keywords: dict[str, object], place: Place) -> object:
            self.budget.charge(len(owner) if name != "get" else 1)
            self.touch(owner)
            first = arguments[0] if arguments else None
            second = arguments[1] if len(arguments) > 1 else keywords.get("default")
            if name in {"keys", "values", "items", "copy"}:
                views = {"keys": owner, "values": owner.values(), "items": owner.items()}
                return dict(owner) if name == "copy" else list(views[name])
            if name == "update":
                pairs = first if isinstance(first, dict) else self.pairs_of(first, place)
                owner.update(pairs)
                owner.update(keywords)
                return None
            if not hashable(first) or isinstance(first, Unknown | Either):
                return Unknown(f"dict.{name}", place, True)
            if name == "get":
                return owner.get(first, second)
            if name == "pop":
                return owner.pop(first, second)
            if name == "setdefault":
                return owner.setdefault(first, second)
            return Unknown(f"dict.{name}", place)

        return Native(f"dict.{name}", run)

    def pairs_of(self, value: object, place: Place) -> dict[object, object]:
        """Keys and values of a list of pairs."""
        items = self.items(value, place) if value is not None else []
        pairs: dict[object, object] = {}
        for one in items if isinstance(items, list) else []:
            pair = self.items(one, place)
            if isinstance(pair, list) and len(pair) == 2 and hashable(pair[0]):
                pairs[pair[0]] = pair[1]
        return pairs

    def set_method(self, owner: set[object], name: str) -> object:
        """A method of a set."""

        def run(arguments: list[object], keywords: dict[str, object], place: Place) -> object:
            del keywords
            self.touch(owner)
            first = arguments[0] if arguments else None
            if name == "add" and hashable(first):
                owner.add(first)
                return None
            if name in {"discard", "remove"} and hashable(first):
                owner.discard(first)
                return None
            items = self.items(first, place)
            if name in {"union", "update", "difference", "intersection"} and isinstance(items, list):
                other = {one for one in items if hashable(one)}
                if name == "update":
                    owner.update(other)
                    return None
                return {"union": owner | other, "difference": owner - other, "intersection": owner & other}[
                    name
                ]
            return Unknown(f"set.{name}", place)

        return Native(f"set.{name}", run)


def _equals(a: object, b: object) -> bool:
    return compare(ast.Eq(), a, b) is True
