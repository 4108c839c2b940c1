"""What is measured: a case for each operator and size."""
