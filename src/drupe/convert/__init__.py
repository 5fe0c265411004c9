"""The same weights under another model's names and layout: plan (pure), values, writing, verification."""
