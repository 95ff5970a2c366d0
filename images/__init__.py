"""Image data sets: where they come from, how they are split, read, normalized and augmented."""

from images.corruptions import CORRUPTIONS, FOR_CHOOSING, KINDS, SEVERITIES, corrupt, gaussian_noise, rotate
from images.data import ImageData, data_name, load_data
from images.files import ImageFiles, image_paths, read_images, to_pixels
from images.sources import SOURCES, Contents, Source
from images.splits import Split
from images.transforms import CHUNK, augment, chunk_size, normalize, random_crop, to_channels
from images.unknown import UNKNOWN, UnknownSet, load_unknown

__all__ = [
    "CHUNK",
    "CORRUPTIONS",
    "FOR_CHOOSING",
    "KINDS",
    "SEVERITIES",
    "SOURCES",
    "UNKNOWN",
    "Contents",
    "ImageData",
    "ImageFiles",
    "Source",
    "Split",
    "UnknownSet",
    "augment",
    "chunk_size",
    "corrupt",
    "data_name",
    "gaussian_noise",
    "image_paths",
    "load_data",
    "load_unknown",
    "normalize",
    "random_crop",
    "read_images",
    "rotate",
    "to_channels",
    "to_pixels",
]
