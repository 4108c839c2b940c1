"""Which hidden states an EAGLE3 head reads. Nothing here imports SGLang."""

from collections.abc import Sequence


def captured_layers(outputs: Sequence[int] | None, layers: int) -> tuple[int, ...]:
    """Layers whose inputs are the outputs of the layers ``outputs``, as a head's configuration names them.

    Those of SGLang's other models where it names none. Raises ValueError where a layer is not there, no other one
    follows it, or the layers are not in order.
    """
    if outputs is None:
        return 2, layers // 2, layers - 3
    given = list(outputs)
    inside = all(isinstance(index, int) and 0 <= index < layers - 1 for index in given)
    if not given or not inside or given != sorted(set(given)):
        raise ValueError(
            f"MiniCPM-SALA: eagle_aux_hidden_state_layer_ids = {given} is not supported; allowed: ascending layers "
            f"from 0 to {layers - 2}, those that another one follows"
        )
    return tuple(index + 1 for index in given)
