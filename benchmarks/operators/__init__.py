"""Operators by themselves: their time beside floors and other libraries, and what they are compiled to."""
