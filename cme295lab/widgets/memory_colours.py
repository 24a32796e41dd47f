"""The colour of each class of memory, the same in bars, timelines and treemaps."""

from cme295lab import palette

COLOURS = {
    "weight": palette.BLUE,
    "gradient": palette.ORANGE,
    "master weight": "#004C78",  # a darker blue: the weights once more
    "optimizer state": palette.GREEN,
    "activation": palette.SKY,
    "temporary": palette.PURPLE,
    "KV cache": "#F0E442",
    "fragmentation": palette.GREY,
}
