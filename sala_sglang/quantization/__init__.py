"""Checkpoints with quantised linear layers: what each of them is by the configuration and the files, and its loading.

``scheme`` and ``formats`` say what the tensors of a layer are and which weight they stand for, ``configuration`` reads
the rules of a checkpoint, ``checkpoint_files`` the headers of its files, ``plan`` joins and checks both, ``placement``
puts tensors into the parameters of a rank, and ``methods`` gives the layers of SGLang their products.
"""

METHOD = "sala"  # the name of all planned checkpoints in SGLang's registry of quantisation methods
