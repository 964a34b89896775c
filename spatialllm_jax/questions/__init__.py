"""Scenes -> question records: one module per family, wording, balance, datasets."""
