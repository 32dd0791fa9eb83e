"""Recipes from the configurations of other trainers."""

from covey.convert.draft import Conversion, to_text
from covey.convert.trl import convert_trl, read_trl

__all__ = ["Conversion", "convert_trl", "read_trl", "to_text"]
