"""Figures: the canvas that all sciences draw on."""
