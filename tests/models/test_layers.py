"""What of the served model can be tried without its process groups."""

import pytest
import torch
from sglang.srt.managers.scheduler_components.weight_updater import _export_static_state, _import_static_state
from sglang.srt.model_loader.weight_utils import initialize_dummy_weights
from torch import nn

from sala_sglang.config import SALAConfig
from sala_sglang.models.layers import InverseFrequencies

CONFIG = SALAConfig()


@pytest.fixture
def mixer() -> nn.Module:
    module = nn.Module()
    module.inv_freq = InverseFrequencies(CONFIG)
    return module


@pytest.fixture
def expected() -> torch.Tensor:
    powers = [CONFIG.rope_theta ** (-2 * j / CONFIG.lightning_head_dim) for j in range(CONFIG.lightning_head_dim // 2)]
    return torch.tensor(powers, dtype=torch.float64).float()


def test_frequencies_survive_the_memory_saver(mixer, expected):
    """--enable-memory-saver: memory of the weights comes back with other contents, and SGLang restores buffers."""
    saved = _export_static_state(mixer)
    mixer.inv_freq.bits.fill_(-1)  # NaN
    assert mixer.inv_freq().isnan().all()
    _import_static_state(mixer, saved)
    assert torch.equal(mixer.inv_freq(), expected)


def test_casts_and_loaders_leave_frequencies_alone(mixer, expected):
    mixer.to(torch.bfloat16).half()
    initialize_dummy_weights(mixer)
    assert mixer.state_dict() == {} and list(mixer.parameters()) == []
    assert mixer.inv_freq().dtype == torch.float32 and torch.equal(mixer.inv_freq(), expected)
