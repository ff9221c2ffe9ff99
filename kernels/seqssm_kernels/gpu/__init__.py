"""Code shared by the Triton engines: blocks and launch plans."""
