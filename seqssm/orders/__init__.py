"""Scan orders: tables of positions for sequences, grids, coordinates, graphs and scores."""
