"""TensorBoard, MLflow and Weights & Biases: told of a run by rank 0, each in its own process."""
