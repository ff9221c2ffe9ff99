"""Figures: canvas, titles and file output shared by all domains."""
