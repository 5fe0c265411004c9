"""Steps that need the tensors of both models: what corresponds to what, and in which basis."""
