"""Datasets that tfds prepares of files that lie here; importing this registers them.

`tfds.builder("jaxdesc_photos", source="photos:FOLDER")` and its kin, see `base` and
docs/data.md.
"""

from jaxdesc.data.builders import (  # noqa: F401
    base,
    colmap,
    embedded,
    megadepth,
    pairs,
    photos,
    posed,
    rendered,
    semantic,
    sfm120k,
)
