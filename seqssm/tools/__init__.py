"""Tools built on all other packages: the demo page."""
