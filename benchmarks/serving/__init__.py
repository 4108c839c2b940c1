"""Speed and memory of whole engines and servers."""
