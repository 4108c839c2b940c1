"""MiniCPM-SALA in plain PyTorch for the Auto classes of transformers: no compiled operator, any device or several.

transformers finds a model by its type, and has no entry points for packages that add one. So import this
package once; then the usual lines work, without ``trust_remote_code``::

    import sala_sglang.hf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path)

SGLang registers a configuration class of its own for the same type when it is imported, unless its plugins are loaded,
as all its commands and ``sglang.Engine`` do. Where SGLang is imported otherwise, call ``register`` after it.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sala_sglang.config import SALAConfig
from sala_sglang.hf.cache import SALACache
from sala_sglang.hf.modeling_minicpm_sala import MiniCPMSALAForCausalLM, MiniCPMSALAModel

__all__ = ["MiniCPMSALAForCausalLM", "MiniCPMSALAModel", "SALACache", "SALAConfig", "register"]


def register() -> None:
    """Let the Auto classes find this model, whoever registered its type before. Importing the package calls it."""
    AutoConfig.register(SALAConfig.model_type, SALAConfig, exist_ok=True)
    AutoModel.register(SALAConfig, MiniCPMSALAModel, exist_ok=True)
    AutoModelForCausalLM.register(SALAConfig, MiniCPMSALAForCausalLM, exist_ok=True)


register()
