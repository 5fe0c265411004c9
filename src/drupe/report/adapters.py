"""What an adapter is, in a few lines: of a side of a report, or applied to it."""

from __future__ import annotations

from drupe.report.words import Table, Words, number, rows, table


def adapter_lines(words: Words, side: Table) -> list[str]:
    """None when the side has nothing to do with an adapter."""
    if "adapter" not in side:
        return []
    adapter = table(side["adapter"])
    methods = ", ".join(str(method) for method in rows(adapter["methods"])) or "-"
    ranks = ", ".join(str(rank) for rank in rows(adapter["ranks"])) or "-"
    alpha = "-" if adapter["alpha"] is None else str(adapter["alpha"])
    lines = [] if adapter["applied"] is None else [words("adapters.applied", locator=str(adapter["applied"]))]
    lines.append(
        words(
            "adapters.is_one",
            methods=methods,
            ranks=ranks,
            alpha=alpha,
            changed=number(adapter["changed_tensors"]),
            saved=number(adapter["saved_tensors"]),
            values=number(adapter["stored_values"]),
            layout=str(adapter["layout"]),
        )
    )
    if adapter["base"] is not None:
        lines.append(words("adapters.base", base=str(adapter["base"])))
    stated, rank = adapter["stated_rank"], adapter["rank"]
    if stated is not None and rank and stated not in rows(adapter["ranks"]):
        lines.append(words("adapters.other_rank", stated=str(stated), ranks=ranks))
    return lines
