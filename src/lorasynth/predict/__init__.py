"""A network from conditions to adapters, trained through the base model's own loss."""

from lorasynth.predict.predictor import Predictor, PredictorConfig
from lorasynth.predict.train import PredictorTraining, train_predictor

__all__ = ["Predictor", "PredictorConfig", "PredictorTraining", "train_predictor"]
