"""WIMFRIS: window-Mamba fusion and parameter-efficient tuning for referring image segmentation: a research harness."""
