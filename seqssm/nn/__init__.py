"""Sequence layers and the state that they carry."""
