"""What the ledger says of one touch on SGLang."""

from dataclasses import dataclass

EVERY, FRONTEND, WORKER = "every process", "frontend", "workers"
PROCESSES = {
    EVERY: "the one that reads the command line, and all that it starts",
    FRONTEND: "the one that reads the command line and answers requests",
    WORKER: "those with the scheduler and the model",
}

AROUND, AFTER, REGISTRY, VARIABLE = "hook around", "hook after", "registry", "variable"
REPLACED, SUBCLASS, PRIVATE = "replaced", "subclass", "private name"
HOOKS = AROUND, AFTER
MEANS = {
    AROUND: "SGLang's hook registry runs our function in place of the target, which it gets as first argument",
    AFTER: "SGLang's hook registry runs our function with the target's result",
    REGISTRY: "something of ours is entered where SGLang looks it up, or declared to it",
    VARIABLE: "an environment variable of SGLang is set, or is read under SGLang's name",
    REPLACED: "a module attribute gets another value",
    SUBCLASS: "a class of ours inherits, and overrides or calls the names given",
    PRIVATE: "a name with an underscore is read",
}

NO_CUDA, HIERARCHICAL = "machines without CUDA", "--enable-hierarchical-cache"
SPECULATIVE, DRAFT_MODEL = "--speculative-algorithm", "--speculative-draft-model-path"
OFFICIAL = "stays: SGLang is extended this way"


@dataclass(frozen=True, kw_only=True)
class Touch:
    """One touch on SGLang.

    target: dotted path of what is touched, or the name of a variable. how: one of MEANS. process: one of PROCESSES,
    where it happens. why: what would be wrong without it. until: what must change in SGLang before it can go, or
    "stays: " and the reason. when: the condition under which it happens, empty for always. names: what a subclass
    overrides or calls beside ``__init__``, or what a hook changes. upstream: ``sgl-project/sglang#NUMBER``, an issue or
    pull request that asks for what ``until`` says, provides a part of it, or brought what is used; empty where none is
    known.
    """

    target: str
    how: str
    process: str
    why: str
    until: str
    when: str = ""
    names: tuple[str, ...] = ()
    upstream: str = ""

    @property
    def stays(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.until.startswith("stays: ")
