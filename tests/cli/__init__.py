"""The verbs, as a shell calls them."""

import sys

from jaxdesc.__main__ import main


def call(monkeypatch, capsys, *words, status=None):
    """Runs `jaxdesc WORDS` in this process; (stdout, stderr) if it ends with `status`."""
    monkeypatch.setattr(sys, "argv", ["jaxdesc", *map(str, words)])
    code = None
    try:
        main()
    except SystemExit as e:
        code = e.code
    out, err = capsys.readouterr()
    assert code == status, err
    return out, err
