"""The plugin: the only folder that touches SGLang's registries and hooks. ``touches.py`` lists every touch."""

from sala_sglang.plugin.entry_point import register

__all__ = ["register"]
