"""Prediction from a checkpoint and the user's files."""
