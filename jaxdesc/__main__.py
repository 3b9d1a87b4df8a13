"""`jaxdesc VERB ...`, or `python -m jaxdesc VERB ...`; without a verb, the list of them."""

import difflib
import sys
from importlib import import_module

import jaxdesc
from jaxdesc import cli
from jaxdesc.errors import UserError

VERBS = {
    "train": "trains a method, or goes on where a workdir stopped",
    "match": "matches two images, or all pairs of a folder",
    "extract": "describes keypoints of a folder of images, in the files of other tools",
    "evaluate": "scores features, matches and dense predictions by the field's protocols",
    "convert": "makes a weight file of released weights or of a training workdir",
    "sweep": "trains and scores a grid of configurations: the papers' studies",
    "benchmark": "times the hot paths beside their floors",
}


def usage() -> str:
    verbs = "\n".join(f"  {verb:<10} {what}" for verb, what in VERBS.items())
    return (
        "usage: jaxdesc VERB ...\n\n"
        "Local image descriptors and dense correspondences, learned with weak supervision.\n\n"
        f"{verbs}\n\n"
        "jaxdesc VERB --help says more, with an example; --version prints the version.\n\n"
        "example:\n  jaxdesc match A.jpg B.jpg --figure matches.png"
    )


def called(words: list[str]) -> None:
    """Runs the verb that the first word names; without any, prints what there is."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
    elif words[0] == "--version":
        print(f"jaxdesc {jaxdesc.__version__}")
    elif words[0] not in VERBS:
        near = difflib.get_close_matches(words[0], VERBS, 1)
        meant = f"do you mean {near[0]}?" if near else f"there are {', '.join(VERBS)}."
        raise UserError(f"There is no verb {words[0]!r}; {meant}")
    else:
        sys.argv = ["jaxdesc", *words[1:]]
        import_module(f"jaxdesc.cli.{words[0]}").main()


def main() -> None:
    cli.run(lambda: called(sys.argv[1:]))


if __name__ == "__main__":
    main()
