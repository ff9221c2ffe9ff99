"""Training: tasks, data modules, checkpoints, run folders, and the functions behind fit, test and kfold."""
