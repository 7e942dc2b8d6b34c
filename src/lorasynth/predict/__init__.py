"""The second road: a regression and its codec, trained through the base model's own loss."""

from lorasynth.predict.predictor import Predictor
from lorasynth.predict.train import Predicting, PredictorTraining, train_predictor

__all__ = ["Predicting", "Predictor", "PredictorTraining", "train_predictor"]
