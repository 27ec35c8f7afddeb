"""VGG16 classification of brain-MRI slices: prediction, explanation, evaluation, records."""

__version__ = "0.1.0"
