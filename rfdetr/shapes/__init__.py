"""The made-up data set: pictures of simple shapes, drawn on the spot."""
