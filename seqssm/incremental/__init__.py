"""Procedures that add classes to a trained single-label classifier."""
