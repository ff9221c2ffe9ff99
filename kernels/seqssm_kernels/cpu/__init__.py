"""What the compiled CPU engines share: vector lanes, threads, the memory pool, compilation."""
