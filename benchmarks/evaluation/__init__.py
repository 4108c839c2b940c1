"""What a served model finds in long prompts."""
