"""SGLang attention backends of MiniCPM-SALA, the metadata of a step, and the pools they work on."""
