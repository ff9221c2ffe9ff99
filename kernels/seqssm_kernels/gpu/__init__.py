"""What the Triton engines share: blocks and launch plans."""
