"""The model as SGLang would have it: layers, loading and sharding, and nothing of the plugin around it."""
