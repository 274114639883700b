"""WIMFRIS: window-Mamba fusion and parameter-efficient tuning for referring image segmentation."""

import os

# cuBLAS reads it when CUDA starts. Without it torch refuses deterministic training on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
