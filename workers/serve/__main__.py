"""Runs the model server: `python -m workers.serve`."""

from workers.serve.app import main

if __name__ == "__main__":
    main()
