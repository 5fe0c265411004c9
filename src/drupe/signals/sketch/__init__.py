"""weights.sketch: sign sketch of row-pair differences (see bits, facts, compare)."""
