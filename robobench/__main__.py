"""`python -m robobench`."""

from robobench.cli import entry

if __name__ == "__main__":
    entry()
