"""Tools that use everything below them: the demo page."""
