"""Training: tasks, data modules, checkpoints, run folders, and the commands fit, test and kfold."""
