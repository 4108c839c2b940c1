"""The class that SGLang builds: the model, in a process that has been prepared for it.

SGLang finds it by its name, which is the architecture's in ``config.json``.
"""

from sglang.srt.layers.quantization.base_config import QuantizationConfig

from sala_sglang.config import SALAConfig
from sala_sglang.models import minicpm_sala
from sala_sglang.plugin.worker import prepare_worker


class MiniCPMSALAForCausalLM(minicpm_sala.MiniCPMSALAForCausalLM):
    """The served model of a worker with the plugin's hooks and backends."""

    def __init__(self, config: SALAConfig, quant_config: QuantizationConfig | None = None, prefix: str = "") -> None:
        prepare_worker(config)
        super().__init__(config, quant_config, prefix)


EntryClass = MiniCPMSALAForCausalLM
