"""DNA: sequences, intervals, variants and labels from users' files, tokens, k-mer baselines and scores."""
