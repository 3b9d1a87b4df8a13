"""`python -m jaxdesc.train`: the same as `jaxdesc train`."""

from jaxdesc import cli
from jaxdesc.cli.train import main

if __name__ == "__main__":
    cli.run(main)
