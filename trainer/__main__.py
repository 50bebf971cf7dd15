"""`python -m trainer` is the same as `velatura`."""

from trainer.cli import main

if __name__ == "__main__":
    main()
