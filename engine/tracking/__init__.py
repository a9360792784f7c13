"""Experiment trackers (trackio, wandb, MLflow), fed from what a run records anyway; none of it changes a run."""
