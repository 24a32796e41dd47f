"""Make the pictures of the documentation from the real thing: `python docs/images/make_images.py`."""

import sys
from pathlib import Path

from cme295lab.widgets import TileWalk

HERE = Path(__file__).parent


def make_images(folder: Path) -> list[Path]:
    """Write all pictures into a folder.

    Args:
        folder: where to write, an existing folder.

    Returns:
        The files.
    """
    tile_walk = folder / "tile_walk.png"
    tile_walk.write_bytes(TileWalk(seq=128, head_dim=64, block_m=32, block_n=32, causal=True).figure(program=3).png())
    return [tile_walk]


if __name__ == "__main__":
    sys.stdout.writelines(f"{path}\n" for path in make_images(HERE))
