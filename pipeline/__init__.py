"""Trainyard: data to trained model, model to artifacts that are proven to predict as it did in training."""

__version__ = "0.1.0"
