"""The trainer of sala-tiny, and what it made."""
