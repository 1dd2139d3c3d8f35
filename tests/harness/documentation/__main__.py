"""Writes the reference pages: ``python -m tests.harness.documentation``."""

from tests.harness.documentation.reference import FOLDER, write

if __name__ == "__main__":
    changed = write()
    print("\n".join(f"written: {FOLDER.name}/{name}" for name in changed) or "nothing has changed")
