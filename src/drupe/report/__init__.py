"""Renderers: a report as text, for the terminal or as JSON."""
