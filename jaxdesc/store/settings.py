"""What an output was made with, so that an interrupted run goes on only with its like."""

import json
from pathlib import Path
from typing import Any

from jaxdesc.errors import UserError
from jaxdesc.store.files import atomic, refuse_existing


def claim(path: Path | str, settings: dict[str, Any], overwrite: bool = False) -> bool:
    """Ties a file or folder that grows piece by piece to its settings: `<file>.json` beside it, or `<folder>/jaxdesc.json` in it.

    A file of the same settings may be added to; a folder that holds no settings too, as the folder of the images themselves.

    Args:
      path: a file if its name has a suffix or it exists as one, else a folder.
      overwrite: a file that is there is deleted.
    Returns:
      whether there is something to go on from.
    Raises:
      UserError: the file exists and has no settings, or other ones (naming the first that differs); `overwrite` of a folder; as `atomic`.
    """
    path, settings = Path(path), json.loads(json.dumps(settings))
    folder = path.is_dir() or not (path.suffix or path.exists())
    note = path / "jaxdesc.json" if folder else path.with_name(f"{path.name}.json")
    if overwrite and folder and path.exists():
        raise UserError(f"{path} is a folder, which is not overwritten: delete it, or choose another name.")
    if overwrite:
        path.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
    if path.exists() and not folder and not note.exists():
        refuse_existing(path, overwrite)
    if path.exists() and note.exists():
        try:
            known = json.loads(note.read_text())
            differing = [key for key in sorted(settings.keys() | known.keys()) if settings.get(key) != known.get(key)]
        except (ValueError, AttributeError) as e:
            raise UserError(f"{note}, which says how {path} was made, is damaged: choose another name or ask for it to be overwritten.") from e
        if differing:
            key = differing[0]
            raise UserError(
                f"{path} exists already and was made with other settings ({key} was {known.get(key)!r} and is now {settings.get(key)!r}): "
                "choose another name or ask for it to be overwritten."
            )
        return True
    with atomic(note) as temporary:
        temporary.write_text(json.dumps(settings, indent=1))
    return path.exists() and not folder
