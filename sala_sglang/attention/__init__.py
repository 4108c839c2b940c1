"""SGLang attention backends of MiniCPM-SALA, the metadata of a step, and the pools they work on."""

BACKEND = "sala"  # the name under which SGLang knows the attention backend
