"""Operators of MiniCPM-SALA. They know torch and Triton, and nothing of any serving engine.

Every operator is a function of tensors, and all of them keep to this:

* Shapes are written in the symbols below. A shape that does not fit raises ValueError and a dtype that does not fit
  TypeError; the message names the tensor, what was expected and what came.
* A floating dtype is bfloat16, float16 or float32; the references take float64 too, and tests rely on that.
* Arguments are read only, unless they are said to be written in place. Results are new tensors.
* ``implementation`` is the name of what computes: "reference", which is the specification, "triton", or "cuda", where
  an operator has it. By default the one that serves is taken. One that is asked for by name never falls back to
  another: ValueError if the operator does not have it.

Symbols of shapes:

T: query rows of the step, those of a request next to each other.
B: requests of the step.
Hq: query heads; those of a group are adjacent.
Hkv: KV heads.
G: query heads of a group, which share a KV head: ``G = Hq/Hkv``.
H: heads of a lightning layer.
D: head dimension.
W: columns of a row, such as the hidden size.
P: pages of the pool; a page holds a block.
S: token slots of the pool: ``S = P·block_size``.
NB: blocks of a request; the last one may be partial.
K_SEL: selected blocks, the length of a row's list.
"""
