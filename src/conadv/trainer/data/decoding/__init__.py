"""Encoded images to batches: quick decoding, augmentation that repeats, worker processes."""

from conadv.trainer.data.decoding.decode import DecodeError, decode_centre, decode_crop
from conadv.trainer.data.decoding.loader import ImageCounts, ImageLoader
from conadv.trainer.data.decoding.mixing import Mixing
from conadv.trainer.data.decoding.policy import CentreCrop, Pipeline, Preparation
from conadv.trainer.data.decoding.request import Decoded, Request

__all__ = [
    "CentreCrop",
    "DecodeError",
    "Decoded",
    "ImageCounts",
    "ImageLoader",
    "Mixing",
    "Pipeline",
    "Preparation",
    "Request",
    "decode_centre",
    "decode_crop",
]
