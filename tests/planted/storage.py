"""Mistakes in files of the cache, and in whose weights they are of."""

from tests.planted.mistake import Mistake

_PLUGIN = "sala_sglang/plugin"

STORAGE = (
    Mistake(
        "storage: nothing looks at the seal of a file",
        f"{_PLUGIN}/storage.py",
        "if bytes(seal.numpy()) != self._seal(key, content):",
        "if seal is None:",
        "tests/plugin/test_storage.py::test_a_damaged_file_is_removed_and_can_be_written_again",
    ),
    Mistake(
        "storage: files are those of any weights",
        f"{_PLUGIN}/storage.py",
        '"weights": weights}',
        '"weights": ""}',
        "tests/plugin/test_storage.py::test_replaced_weights_leave_their_files",
    ),
    Mistake(
        "storage: weights of other ranks do not count",
        f"{_PLUGIN}/weight_digests.py",
        "if ranks.world_size > 1:",
        "if ranks.world_size > 9:",
        "tests/plugin/test_weight_digests.py::test_ranks_of_a_stage_depend_on_each_other_and_on_the_stage_before",
    ),
    Mistake(
        "storage: weights of earlier stages do not count",
        f"{_PLUGIN}/weight_digests.py",
        "checksum.update(before.numpy().data)",
        "checksum.update(bytes(len(before)))",
        "tests/serving/test_storage_stages.py::test_other_weights_of_one_stage_have_other_files_on_both",
    ),
    Mistake(
        "storage: an adapter is another one's of before at its path",
        f"{_PLUGIN}/adapter_ids.py",
        "checksum.update(file.read_bytes())",
        'checksum.update(b"")',
        "tests/serving/test_storage_stages.py::test_a_restarted_server_finds_what_its_own_weights_computed",
    ),
)
