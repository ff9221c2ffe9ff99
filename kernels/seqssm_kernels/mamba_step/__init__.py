"""One step of a Mamba layer between its outer projections."""
