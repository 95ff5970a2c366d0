"""Image data sets: where they come from, how they are split, read, normalized and augmented."""

from images.corruptions import CORRUPTIONS, SEVERITIES, corrupt, gaussian_noise, rotate
from images.data import ImageData, data_name, load_data
from images.files import ImageFiles, read_images, to_pixels
from images.sources import SOURCES, Contents, Source, find_not_mnist
from images.splits import Split
from images.transforms import CHUNK, augment, normalize

__all__ = [
    "CHUNK",
    "CORRUPTIONS",
    "SEVERITIES",
    "SOURCES",
    "Contents",
    "ImageData",
    "ImageFiles",
    "Source",
    "Split",
    "augment",
    "corrupt",
    "data_name",
    "find_not_mnist",
    "gaussian_noise",
    "load_data",
    "normalize",
    "read_images",
    "rotate",
    "to_pixels",
]
