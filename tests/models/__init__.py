"""Parts of the served model."""
