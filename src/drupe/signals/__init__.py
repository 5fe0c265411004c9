"""One unit per signal: extract, compare, explain, from fingerprints alone."""
