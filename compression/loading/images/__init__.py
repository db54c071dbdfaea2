"""Datasets of images: parquet, npz, and zip or tar archives of image folders.

Free of torch and of image libraries, so that the gateway may look: `containers` (what a file holds),
`zip_index`, `tar_index`, `folders`, `npy`, `npz`, `thrift`, `parquet`, `headers`, `classes`. For the runner
alone: `reading`, `pixels`, `augmentation`, `streaming`, `plan`.
"""
