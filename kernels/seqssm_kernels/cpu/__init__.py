"""Code shared by the compiled CPU engines: vector lanes, threads, the memory pool, compilation."""
