"""Use a trained model: `from wimfris.inference import Predictor`."""

from wimfris.inference.predict import Predictor

__all__ = ["Predictor"]
