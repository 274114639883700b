"""Methods to compare with, trained in the same Segmenter by the same protocol: DETRIS, ETRIS, LoRA and others."""
