"""Encoded images to batches: quick decoding, augmentation that repeats, worker processes."""

from __future__ import annotations

from conadv.data.decoding.chunk import EncodedImages
from conadv.data.decoding.corrupt import Tally
from conadv.data.decoding.decode import DecodeError, decode_centre, decode_crop
from conadv.data.decoding.loader import ImageLoader
from conadv.data.decoding.mixing import Mixing
from conadv.data.decoding.policy import CentreCrop, Pipeline, Preparation
from conadv.data.decoding.request import Decoded, Request

__all__ = [
    "CentreCrop",
    "DecodeError",
    "Decoded",
    "EncodedImages",
    "ImageLoader",
    "Mixing",
    "Pipeline",
    "Preparation",
    "Request",
    "Tally",
    "decode_centre",
    "decode_crop",
]
