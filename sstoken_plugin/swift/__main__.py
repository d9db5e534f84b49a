"""`python -m sstoken_plugin.swift` prints the file that `--external_plugins` takes."""

from pathlib import Path

if __name__ == "__main__":
    print(Path(__file__).with_name("register.py"))
