"""Trains the checkpoint sala-tiny. Not a part of the installed packages."""
