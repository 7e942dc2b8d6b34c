from .config import PredictorTraining as PredictorTraining
from .predictor import Predictor as Predictor
from .train import Predicting as Predicting
from .train import train_predictor as train_predictor
