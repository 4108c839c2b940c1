"""The plugin: the only folder that touches SGLang's registries and hooks. ``touches/`` lists every touch."""


def register() -> None:
    """Entry point of ``sglang.srt.plugins``; runs in every SGLang process.

    Imports what it needs itself, because ``sala-sglang doctor --touches`` reads the ledger beside it and needs nothing.
    """
    from sala_sglang.plugin import entry_point

    entry_point.register()
