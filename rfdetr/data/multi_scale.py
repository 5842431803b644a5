"""The image sizes that multi-scale training draws from."""

MIN_STEPS = 2  # smaller sizes leave too few windows to attend over


def multi_scale_sizes(resolution: int, patch_size: int, num_windows: int, expanded: bool) -> list[int]:
    """List the sides (pixels, ascending) around ``resolution`` that split into whole windows of whole patches."""
    step = patch_size * num_windows
    offsets = range(-5, 6) if expanded else range(-3, 5)
    multiples = (resolution // step + offset for offset in offsets)
    return [multiple * step for multiple in multiples if multiple >= MIN_STEPS]
