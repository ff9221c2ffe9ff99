"""Scores and how they are reported."""
