"""Speed of training the model in transformers."""
