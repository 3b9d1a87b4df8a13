"""Prepared datasets by tfds's own calls: names, cards, and an installed package without TensorFlow."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxdesc.data.builders import base, pairs, photos, posed, semantic
from jaxdesc.data.kinds import (
    DataConfig,
    HomographyPairs,
    KeypointPairs,
    PosedPairs,
    UnlabelledPairs,
)
from jaxdesc.errors import UserError

ROOT = Path(__file__).parents[2]
NAMES = tuple(
    f"jaxdesc_{name}"
    for name in (
        *("photos", "pair_images", "pairs", "view_images", "views", "posed_pairs"),
        *("semantic_images", "semantic_pairs"),
    )
)


def pictures(folder, count, seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
        small.resize((96, 72 + i)).save(folder / f"{i}.png")
    return folder


def keypoints(root):
    for i, category in enumerate(("cat", "dog")):
        folder = pictures(root / category, 4, i)
        for image in folder.glob("*.png"):
            image.with_suffix(".txt").write_text("5 6\n20 30\n40.5 7\n")
    return root


def test_the_documented_calls_in_a_fresh_process_without_tensorflow(site, tmp_path):
    """The block of docs/data.md, with a folder of photographs for MY_PHOTOS."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.S)[1]
    folder = pictures(tmp_path / "my photos", 5)
    program = f"""
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(  # as if it were not installed
    lambda name, *rest: None if name.partition(".")[0] == "tensorflow" else find(name, *rest)
)
{block.replace("MY_PHOTOS", str(folder))}
import json, jaxdesc
image = photographs[0]["image"]
found = [jaxdesc.__file__, len(photographs), image.shape, str(image.dtype), builder.info.description]
found.append([name for name in sys.modules if name.partition(".")[0] == "tensorflow"])
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(site), "JAXDESC_CACHE": str(tmp_path), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, count, shape, dtype, description, tensorflow = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(site)
    assert (count, shape[1:], dtype, tensorflow) == (4, [96, 3], "uint8", [])
    assert description in done.stdout.replace("\n    ", "\n")
    assert list(tmp_path.glob("my_photos-*/photos/1.0.0/LICENSE*"))


def test_a_run_opens_what_was_prepared_by_name(tmp_path):
    folder = pictures(tmp_path / "a", 3)
    builder = tfds.builder(
        "jaxdesc_photos", source=f"photos:{folder}", max_side_px=64, data_dir=tmp_path / "cache"
    )
    builder.download_and_prepare()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    opened = photos.open_photos(str(folder), 64, str(tmp_path / "cache"))
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert before == after and len(opened.train) == 2
    np.testing.assert_array_equal(
        opened.train[1]["image"], builder.as_data_source("train")[1]["image"]
    )


def test_pairs_prepare_what_they_point_into(tmp_path):
    given = {"source": "embedded", "max_side_px": 96}
    pairs = tfds.data_source(
        "jaxdesc_posed_pairs", split="train", data_dir=tmp_path, builder_kwargs=given
    )
    views = posed.Views(**given, data_dir=tmp_path).as_data_source("views")
    images = posed.ViewImages(**given, data_dir=tmp_path).as_data_source("images")
    assert len(pairs) == 1 and len(views) == len(images) == 2
    pair = pairs[0]
    np.testing.assert_allclose(pair["t_1to2"], [-1, 0, 0], atol=1e-6)
    assert images[int(pair["index2"])]["name"] == b"motorcycle_right.png"


def test_semantic_pairs_by_name(tmp_path):
    root = keypoints(tmp_path / "kp")
    builder = tfds.builder(
        "jaxdesc_semantic_pairs", source=f"keypoints:{root}", data_dir=tmp_path / "cache"
    )
    builder.download_and_prepare()
    pair = builder.as_data_source("train")[0]
    np.testing.assert_allclose(pair["xy1_px"], [[5, 6], [20, 30], [40.5, 7]], atol=1e-4)
    assert pair["mask1"] == b"" and not pair["flip"]


def test_a_data_source_reaches_the_processes_of_a_loader(tmp_path):
    folder = pictures(tmp_path / "a", 3)
    builder = photos.Photos(source=f"photos:{folder}", max_side_px=64, data_dir=tmp_path / "cache")
    builder.download_and_prepare()
    source = builder.as_data_source("train")
    image = source[1]["image"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[1]["image"], image)
    again = pickle.loads(pickle.dumps(builder))
    assert again.data_dir == builder.data_dir and again.max_side_px == 64


def test_every_registered_dataset_has_a_card(tmp_path):
    known = tfds.list_builders(with_community_datasets=False)
    assert tuple(sorted(name for name in known if name.startswith("jaxdesc"))) == tuple(
        sorted(NAMES)
    )
    where = {
        "photos": pictures(tmp_path / "photos", 3),
        "keypoints": keypoints(tmp_path / "keypoints"),
    }
    for name in NAMES:
        kind = "keypoints" if "semantic" in name else "embedded"
        source = f"{kind}:{where[kind]}" if kind in where else kind
        info = tfds.builder(name, source=source, data_dir=tmp_path / "cache").info
        about, files = info.description.split("\n\n")
        assert len(about) > 40 and len(files) > 40
        assert info.redistribution_info.license
        assert info.homepage.startswith(("https://scikit-image.org", "file:///"))
        assert bool(info.citation) == (kind == "embedded")
        assert info.supervised_keys is None
        for feature in info.features.values():
            assert feature.doc.desc, (name, feature)


def test_every_source_of_a_configuration_is_one_here():
    """But photographs as pairs with themselves, which are `jaxdesc_photos`, and what is refused."""
    assert DataConfig().canvas_px == base.MAX_SIDE_PX
    for kind, builder in (
        (HomographyPairs, photos.Photos),
        (UnlabelledPairs, pairs.Pairs),
        (PosedPairs, posed.PosedPairs),
    ):
        assert set(kind.known_sources) == set(builder.SOURCES)
    annotated = set(KeypointPairs.known_sources) - set(photos.Photos.SOURCES) - {"caltech"}
    assert annotated == set(semantic.SemanticPairs.SOURCES)


@pytest.mark.parametrize(
    "source, told",
    [
        ("pairs:x", r"knows no source 'pairs:x': write kind:PATH with a kind of photos, embedded"),
        ("photos:/nowhere", "There is no folder /nowhere"),
        ("embedded:x", "write embedded alone"),
    ],
)
def test_a_wrong_source_is_named(source, told):
    with pytest.raises(UserError, match=told):
        tfds.builder("jaxdesc_photos", source=source)


def test_rendered_rooms_by_name_know_whose_photographs_are_on_the_walls(tmp_path):
    folder = pictures(tmp_path / "walls", 2)
    ours = tfds.builder("jaxdesc_posed_pairs", source="rendered", data_dir=tmp_path)
    theirs = tfds.builder("jaxdesc_posed_pairs", source=f"rendered:{folder}", data_dir=tmp_path)
    assert "scikit-image" in ours.info.description and "Middlebury" in str(ours.info)
    assert theirs.info.homepage == folder.as_uri()
    assert Path(ours.data_dir).parent.parent.name.startswith("rendered-")
