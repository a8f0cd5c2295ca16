"""The `prepare` stage: model and data in, token ids and labels out. Imports no torch."""
