"""Search over settings with Optuna: spaces of params.yaml, trials that are ordinary runs, a study that resumes."""
