"""Procedures that make a trained model smaller or cheaper."""
