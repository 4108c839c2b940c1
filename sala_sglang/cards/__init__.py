"""What the released model needs of a GPU: known cards, memory, times, and the plan of a server."""
