"""Trained through the base model's own loss: a regression with its codec, and an IP-Adapter."""

from lorasynth.predict.predictor import Predictor
from lorasynth.predict.train import Predicting, PredictorTraining, train_predictor

__all__ = ["Predicting", "Predictor", "PredictorTraining", "train_predictor"]
