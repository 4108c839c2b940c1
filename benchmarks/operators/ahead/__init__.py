"""What the operators launch and how it compiles, for GPUs that are not there."""
