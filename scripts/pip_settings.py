"""Print shell exports that give uv the package indexes, certificates and constraints that pip is configured with.

uv reads none of pip's settings. Where uv has settings of its own, nothing is printed and they stand alone.
"""

import ast
import os
import shlex
import subprocess
import sys
from pathlib import Path

UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
}
SECTIONS = ("global", "install", ":env:")  # later ones win


def uv_is_configured() -> bool:
    """Whether a configuration file or the environment already tells uv where to find packages."""
    user = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    files = [Path(folder, "uv", "uv.toml") for folder in (user, "/etc/xdg", "/etc")]
    return any(file.exists() for file in files) or any(n.startswith("UV_") and "INDEX" in n for n in os.environ)


def pip_settings() -> dict[str, list[str]]:
    """The settings of pip that uv has a name for, each as a list of words."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    found: dict[str, dict[int, str]] = {}
    for line in lines:
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if name in UV_NAMES and section in SECTIONS:
            found.setdefault(name, {})[SECTIONS.index(section)] = ast.literal_eval(value)
    return {name: values[max(values)].split() for name, values in found.items()}


def main() -> None:
    if uv_is_configured():
        return
    settings = pip_settings()
    for name, words in settings.items():
        separator = "," if name == "find-links" else " "
        if words and not os.environ.get(UV_NAMES[name]):
            print(f"export {UV_NAMES[name]}={shlex.quote(separator.join(words))}")
    if "extra-index-url" in settings:
        # pip takes the best version of all indexes, uv by default one of the first index that has any.
        print("export UV_INDEX_STRATEGY=unsafe-best-match")


if __name__ == "__main__":
    main()
