"""One reader for each data set's layout, used by training and by scoring; nothing here
resizes, draws or scores.

`folders` of photographs, lists of `pairs` and folders of them (SfM-120k), posed
`scenes` (`cameras`, `colmap_models`), `pose_pairs` (SuperGlue's and LoFTR's lists),
`hpatches`, `semantic` sets (`masks`), `dense_pairs`, `aachen`, and what is `embedded`
in scikit-image.
"""
