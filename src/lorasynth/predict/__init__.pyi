from .predictor import Predictor as Predictor
from .train import Predicting as Predicting
from .train import PredictorTraining as PredictorTraining
from .train import train_predictor as train_predictor
